"""Opens a checkpoint of any kind."""

from pathlib import Path

from memattn_jax.checkpoints.checkpoint import Checkpoint, Source
from memattn_jax.checkpoints.folder import open_folder


def open_checkpoint(path: Path, source: Source = Source()) -> Checkpoint:  # noqa: B008 -- frozen
    """Reads what a checkpoint says of itself, and no weights; needs no JAX.

    Raises:
      FileNotFoundError: no such file or folder.
      InputError: not a checkpoint of Stable Diffusion 1.x or 2.x, or a damaged one.
    """
    return open_folder(path)
