"""An autoencoder that comes by itself."""

from dataclasses import replace
from pathlib import Path

from memattn_jax.checkpoints.checkpoint import Part
from memattn_jax.checkpoints.folder import open_part
from memattn_jax.checkpoints.single_file.family import VAE
from memattn_jax.checkpoints.single_file.opening import CONFIGS_KEY, as_is, derived_parts, recorded, renamed_all
from memattn_jax.checkpoints.single_file.renaming import below
from memattn_jax.checkpoints.single_file.vae import modern_vae
from memattn_jax.checkpoints.tensors import read_tensors
from memattn_jax.errors import InputError

TRAINING = ("loss.", "model_ema.")  # what a file may hold beside the network


def open_vae(path: Path) -> Part:
    """An autoencoder: a diffusers folder, of a model or of the autoencoder alone, or a file in either layout.

    Raises:
      FileNotFoundError: no such file or folder.
      InputError: not an autoencoder, or a damaged file.
    """
    if path.is_dir():
        return open_part(path if (path / "config.json").is_file() else path / "vae", "vae")
    stored, metadata = read_tensors(path)
    inner = {name: t for name, t in (below(stored, VAE) or stored).items() if not name.startswith(TRAINING)}
    if not any(name.startswith("decoder.") for name in inner):
        raise InputError(f"{path}: not an autoencoder, it has no decoder.…")
    modern = any(name.startswith("decoder.up_blocks.") for name in inner)
    found = inner if modern else renamed_all(str(path), inner, modern_vae)
    if CONFIGS_KEY in metadata:
        return replace(recorded(str(path), metadata[CONFIGS_KEY], None).parts["vae"], tensors=as_is(found))
    return derived_parts(str(path), {"vae": found}, 512, "")["vae"]
