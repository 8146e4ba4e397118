"""Reads tensors from a file of any container, which its first bytes tell and not its name."""

from pathlib import Path

from memattn_jax.checkpoints.mapped import TensorFile, map_file, refuse_page
from memattn_jax.checkpoints.pickle_file import is_pickle, read_pickle
from memattn_jax.checkpoints.safetensors_file import read_safetensors


def read_tensors(path: Path) -> TensorFile:
    """Maps a file and finds its tensors; reads none of them.

    Raises:
      FileNotFoundError: no such file.
      InputError: not a container that is known, or a damaged one.
    """
    data = map_file(path)
    start = data[:64].tobytes()
    refuse_page(path, start)
    return read_pickle(path, data) if is_pickle(start) else read_safetensors(path, data)
