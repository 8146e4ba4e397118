"""Loads the parts of a `Model` from a checkpoint, and saves them."""

import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from memattn_jax.checkpoints.checkpoint import PARTS, Checkpoint, Source
from memattn_jax.checkpoints.diffusers_folder import save_part
from memattn_jax.checkpoints.filling import build
from memattn_jax.checkpoints.geometry import cross_attention_sites
from memattn_jax.checkpoints.hub import locate
from memattn_jax.checkpoints.opening import open_checkpoint
from memattn_jax.checkpoints.textual_inversion import read_embedding, with_embeddings
from memattn_jax.checkpoints.tokenizer import Tokenizer
from memattn_jax.checkpoints.tokenizer_files import OPTIONAL, save_tokenizer
from memattn_jax.checkpoints.writing.folder import write_settings
from memattn_jax.diffusion.model import Model
from memattn_jax.errors import InputError, check_name
from memattn_jax.models.configs import CLIPTextConfig, UNetConfig, VAEConfig
from memattn_jax.schedulers.config import check_types


def check_parts(checkpoint: Checkpoint) -> None:
    """Raises InputError if the configs are of parts that do not go together."""
    unet, vae, text_encoder = (checkpoint.parts[name].config for name in PARTS)
    assert isinstance(unet, UNetConfig)
    assert isinstance(vae, VAEConfig)
    assert isinstance(text_encoder, CLIPTextConfig)
    for what, have, want in (
        ("text channels", text_encoder.hidden_size, unet.cross_attention_dim),
        ("latent channels", vae.latent_channels, unet.in_channels),
        ("latent channels", vae.latent_channels, unet.out_channels),
    ):
        if have != want:
            raise InputError(f"{checkpoint.where}: parts of different models: {have} {what}, but {want} are expected")
    if (vae.in_channels, vae.out_channels) != (3, 3):
        raise InputError(
            f"{checkpoint.where}: the autoencoder's pictures have {vae.in_channels} and {vae.out_channels} channels, "
            "where red, green and blue are expected; others, as LDM3D's with depth, are not supported"
        )


def warn_of_variants(checkpoint: Checkpoint, asked: str | None) -> None:
    """Says which weights are taken, where they are not those that one expects."""
    taken = {name: part.variant for name, part in checkpoint.parts.items() if part.variant != (asked or "")}
    if taken:
        shown = ", ".join(f"{name} ({variant or 'plain'})" for name, variant in taken.items())
        warnings.warn(f"{checkpoint.where}: no {asked or 'plain'} weights, taking those of {shown}", stacklevel=2)


def open_checked(model: str | Path, source: Source) -> Checkpoint:
    """Opens a checkpoint whose configs are checked; arguments and errors as `StableDiffusion.from_pretrained`."""
    checkpoint = open_checkpoint(locate(model, source), source)
    check_parts(checkpoint)
    check_types(checkpoint.scheduler_config, f"{checkpoint.where}: scheduler_config.json")
    unet = checkpoint.parts["unet"].config
    assert isinstance(unet, UNetConfig)
    if checkpoint.entropy_site is not None:
        check_name("cross-attention layer", checkpoint.entropy_site, cross_attention_sites(unet))
    warn_of_variants(checkpoint, source.variant)
    return checkpoint


def matching_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """A checkpoint's tokenizer, without embeddings; raises InputError if it has more tokens than the text encoder."""
    text = checkpoint.parts["text_encoder"].config
    assert isinstance(text, CLIPTextConfig)
    tokenizer = Tokenizer(checkpoint.tokenizer, text.max_position_embeddings, checkpoint.pad, checkpoint.length)
    have, most = tokenizer.size, text.vocab_size
    if have > most:
        hint = "" if checkpoint.tokenizer else "; add --config FOLDER with the model's tokenizer"
        raise InputError(f"{checkpoint.where}: parts of different models: {have} tokens, but {most} are expected{hint}")
    return tokenizer


def load(model: str | Path, dtype: str, mesh: Mesh | None, source: Source) -> dict[str, Any]:
    """The fields of a `Model`, from a checkpoint; arguments and errors as `StableDiffusion.from_pretrained`."""
    checkpoint = open_checked(model, source)
    parts = dict(checkpoint.parts)
    with ThreadPoolExecutor(1) as aside:  # half of its time is an import
        reading = aside.submit(matching_tokenizer, checkpoint)
        if source.embeddings:
            embeddings = [read_embedding(path, token) for path, token in source.embeddings]
            parts["text_encoder"] = with_embeddings(parts["text_encoder"], reading.result(), embeddings)
        networks = build(parts, dtype, mesh)
        tokenizer = reading.result()
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
    for name in OPTIONAL:  # of another tokenizer that was here
        (folder / "tokenizer" / name).unlink(missing_ok=True)
    save_tokenizer(model.tokenizer.clip, folder / "tokenizer")
    write_settings(folder, model.scheduler_config, model.entropy_site)
