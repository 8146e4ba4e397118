"""Loads the parts of a `Model` from a checkpoint, and saves them."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from memattn_jax.checkpoints.checkpoint import PARTS, Source
from memattn_jax.checkpoints.diffusers_folder import save_part
from memattn_jax.checkpoints.filling import build
from memattn_jax.checkpoints.folder import MODEL_INDEX, OWN
from memattn_jax.checkpoints.geometry import cross_attention_sites
from memattn_jax.checkpoints.hub import locate
from memattn_jax.checkpoints.opening import open_checkpoint
from memattn_jax.checkpoints.textual_inversion import read_embedding, with_embeddings
from memattn_jax.checkpoints.tokenizer import Tokenizer
from memattn_jax.diffusion.model import Model
from memattn_jax.errors import InputError, check_name
from memattn_jax.models.configs import CLIPTextConfig


def load(model: str | Path, dtype: str, mesh: Mesh | None, source: Source) -> dict[str, Any]:
    """The fields of a `Model`, from a checkpoint; arguments and errors as `StableDiffusion.from_pretrained`."""
    checkpoint = open_checkpoint(locate(model), source)
    text = checkpoint.parts["text_encoder"].config
    assert isinstance(text, CLIPTextConfig)
    parts = dict(checkpoint.parts)
    with ThreadPoolExecutor(1) as aside:  # half of its time is an import
        reading = aside.submit(Tokenizer, checkpoint.tokenizer, text.max_position_embeddings, checkpoint.pad)
        if source.embeddings:
            embeddings = [read_embedding(path, token) for path, token in source.embeddings]
            parts["text_encoder"] = with_embeddings(parts["text_encoder"], reading.result(), embeddings)
        networks = build(parts, dtype, mesh)
        tokenizer = reading.result()
    unet, vae, text_encoder = (networks[name] for name in PARTS)
    for what, have, want in (
        ("tokens", tokenizer.size, text_encoder.config.vocab_size),
        ("text channels", text_encoder.config.hidden_size, unet.config.cross_attention_dim),
        ("latent channels", vae.config.latent_channels, unet.config.in_channels),
    ):
        if have > want or (have < want and what != "tokens"):
            raise InputError(f"{checkpoint.where}: parts of different models: {have} {what}, but {want} are expected")
    if checkpoint.entropy_site is not None:
        check_name("cross-attention layer", checkpoint.entropy_site, cross_attention_sites(unet.config))
    return {
        **networks,
        "tokenizer": tokenizer,
        "scheduler_config": dict(checkpoint.scheduler_config),
        "mesh": mesh,
        "entropy_site": checkpoint.entropy_site,
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
