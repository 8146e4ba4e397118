"""The safetensors container: eight bytes of length, a JSON header, and the tensors' bytes one after the other.

Source: huggingface/safetensors, README, "Format". The library of that name reads each tensor into new memory when it is
asked for numpy; this reader maps the file instead and checks what the library checks.
"""

import itertools
import math
from pathlib import Path
from typing import Any, NoReturn

import ml_dtypes
import numpy as np

from memattn_jax.checkpoints.json_file import parse_json
from memattn_jax.checkpoints.mapped import TensorFile
from memattn_jax.errors import InputError
from memattn_jax.text import printable

HEADER_LIMIT = 2**24  # bytes; the format's own is six times that, and a model's has a few hundred thousand
DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}


def read_safetensors(path: Path, data: np.ndarray) -> TensorFile:
    """Finds the tensors of a safetensors file.

    Args:
      path: names the file in errors.
      data: its bytes, uint8 [size].

    Raises:
      InputError: not a safetensors file, or a damaged one.
    """

    def damaged(reason: str) -> NoReturn:
        raise InputError(f"{path}: not a complete safetensors file ({reason})")

    length = int.from_bytes(data[:8].tobytes(), "little")
    if length > min(HEADER_LIMIT, data.size - 8):
        damaged(f"its header would take {length:,} bytes, the file has {data.size:,}")
    try:
        header = parse_json(data[8 : 8 + length].tobytes())
    except ValueError as error:
        damaged(f"header: {error}")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        damaged("__metadata__ is no JSON object")
    content = data[8 + length :]
    tensors, ends = {}, []
    for name, entry in header.items():
        try:
            dtype, shape, start, end = fields(entry)
        except (KeyError, TypeError, ValueError):
            damaged(f"entry {name[:40]!r} is not a dtype, a shape and two offsets")
        if end > content.size:
            damaged(f"{printable(name, 40)} ends at byte {end:,} of {content.size:,}")
        if end - start != math.prod(shape) * dtype.itemsize:
            damaged(f"{printable(name, 40)} has {end - start:,} bytes for shape {list(shape)}"[:120])
        tensors[name] = np.ndarray(shape, dtype, content, start)
        ends.append((start, end))
    ends.sort()
    if any(start < end for (_, end), (start, _) in itertools.pairwise(ends)):
        damaged("tensors overlap")
    return TensorFile(tensors, metadata)


def fields(entry: dict[str, Any]) -> tuple[np.dtype, tuple[int, ...], int, int]:
    """Dtype, shape, start and end of one entry; raises KeyError, TypeError or ValueError for another form."""
    dtype, shape, (start, end) = DTYPES[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
    numbers = (*shape, start, end)
    if len(shape) > 8 or any(type(number) is not int or not 0 <= number < 2**63 for number in numbers):
        raise ValueError
    return dtype, shape, start, end
