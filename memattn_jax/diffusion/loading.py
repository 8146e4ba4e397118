"""Loads the parts of a `Model` from a checkpoint, and saves them."""

import json
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from memattn_jax.checkpoints.diffusers_folder import load_part, save_part
from memattn_jax.checkpoints.folder import MODEL_INDEX, check_folder, cross_attention_sites, read_json
from memattn_jax.checkpoints.hub import locate
from memattn_jax.checkpoints.tokenizer import Tokenizer
from memattn_jax.diffusion.model import Model
from memattn_jax.errors import InputError, check_name

OWN = "memattn_jax.json"  # in a checkpoint's folder: what its detectors need to know and diffusers does not


def load(model: str | Path, dtype: str, mesh: Mesh | None) -> dict[str, Any]:
    """The fields of a `Model`, from a diffusers folder; arguments and errors as `StableDiffusion.from_pretrained`."""
    folder = locate(model)
    check_folder(folder)
    parts, problems = [], []
    for part in ("unet", "vae", "text_encoder"):
        try:
            parts.append(load_part(folder, part, dtype, mesh))
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputError("; ".join(dict.fromkeys(problems)))
    unet, vae, text_encoder = parts
    tokenizer = Tokenizer(folder / "tokenizer", text_encoder.config.max_position_embeddings)
    for what, have, want in (
        ("tokens", len(tokenizer.clip), text_encoder.config.vocab_size),
        ("text channels", text_encoder.config.hidden_size, unet.config.cross_attention_dim),
        ("latent channels", vae.config.latent_channels, unet.config.in_channels),
    ):
        if have > want or (have < want and what != "tokens"):
            raise InputError(f"{folder}: parts of different models: {have} {what}, but {want} are expected")
    site = read_json(folder / OWN).get("entropy_site") if (folder / OWN).is_file() else None
    if site is not None:
        check_name("cross-attention layer", site, cross_attention_sites(unet.config))
    return {
        "unet": unet,
        "vae": vae,
        "text_encoder": text_encoder,
        "tokenizer": tokenizer,
        "scheduler_config": read_json(folder / "scheduler" / "scheduler_config.json"),
        "mesh": mesh,
        "entropy_site": site,
    }


def save(model: Model, folder: Path) -> None:
    """Writes a diffusers folder; see `StableDiffusion.save_pretrained`."""
    for part in ("unet", "vae", "text_encoder"):
        save_part(getattr(model, part), folder, part)
    model.tokenizer.clip.save_pretrained(folder / "tokenizer")
    (folder / "scheduler").mkdir(exist_ok=True)
    class_name = str(model.scheduler_config.get("_class_name", "DDIMScheduler")).removeprefix("Flax")
    scheduler = model.scheduler_config | {"_class_name": class_name}
    index = MODEL_INDEX | {"scheduler": ["diffusers", class_name]}
    files = {"scheduler/scheduler_config.json": scheduler, "model_index.json": index}
    if model.entropy_site is not None:
        files[OWN] = {"entropy_site": model.entropy_site}
    for path, content in files.items():
        (folder / path).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
