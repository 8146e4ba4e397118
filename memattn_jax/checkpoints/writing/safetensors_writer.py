"""Writes a safetensors file whose tensors are made one at a time."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from memattn_jax.checkpoints.mapped import forget
from memattn_jax.checkpoints.safetensors_file import DTYPES

NAMES = {dtype: name for name, dtype in DTYPES.items()}
ALIGNMENT = 8  # bytes; the header is padded so that the tensors begin at a multiple of it


class Written(NamedTuple):
    """A tensor to be written.

    Attributes:
      shape: of the tensor.
      dtype: of the tensor.
      make: makes the array when its turn comes, or gives a view of a mapped file.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    make: Callable[[], np.ndarray]


def write_safetensors(path: Path, tensors: Mapping[str, Written], metadata: Mapping[str, str]) -> None:
    """Writes the header, then each tensor as soon as it is made.

    Source of the format: huggingface/safetensors, README, "Format". The tensors come in the order of the mapping.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + int(np.prod(tensor.shape, dtype=np.int64)) * tensor.dtype.itemsize
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            array = np.ascontiguousarray(tensor.make(), tensor.dtype)
            file.write(array.reshape(-1).view(np.uint8).data)
            forget(array)
