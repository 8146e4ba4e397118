"""Tensors of PyTorch as views of their storages.

Source: PyTorch, torch/_utils.py (`_rebuild_tensor_v2` and the others) and torch/serialization.py (storages).
"""

import math
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from memattn_jax.checkpoints.pickles.names import Global

DTYPES = {
    name: np.dtype(getattr(ml_dtypes, name, name))
    for name in (
        *("float64", "float32", "float16", "bfloat16"),
        *("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"),
        *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool"),
        *("complex128", "complex64"),
    )
}
STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexDoubleStorage": "complex128",
    "ComplexFloatStorage": "complex64",
    "UntypedStorage": "uint8",
}
AXES = 64  # numpy's limit
REPEATED = 2**20  # elements of a tensor that repeats a smaller storage, with strides of 0


class Storage(NamedTuple):
    """The memory that tensors are views of: uint8 [bytes], or None while its place in the file is not known yet."""

    dtype: np.dtype
    data: np.ndarray | None


def is_storage(found: Any) -> bool:
    """Whether a name is that of one of PyTorch's classes of storages."""
    return type(found) is Global and found.module in ("torch", "torch.storage") and found.name in STORAGES


def is_size(number: Any) -> bool:
    """Whether a value is a whole number as sizes in a file are."""
    return type(number) is int and 0 <= number < 2**60


def rebuild_tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any, dtype: np.dtype | None = None
) -> Any:
    """A tensor: a view of its storage, counted in elements; None while the storage has no data.

    Raises:
      ValueError: it leaves its storage, or is stored negated or conjugated.
    """
    if any(type(kept) is dict and kept.keys() & {"neg", "conj"} for kept in rest):  # beside gradient and hooks
        raise ValueError("a tensor is stored negated or conjugated; clone() it before it is saved")
    if type(storage) is not Storage or type(shape) is not tuple or type(strides) is not tuple:
        raise ValueError("a tensor's storage or shape is damaged")
    if len(shape) != len(strides) or len(shape) > AXES or not all(map(is_size, (offset, *shape, *strides))):
        raise ValueError("a tensor's offset, shape or strides are damaged")
    if storage.data is None:
        return None
    dtype = storage.dtype if dtype is None else dtype
    if 0 in shape:
        return np.empty(shape, dtype)
    stored = storage.data.size // dtype.itemsize
    if offset + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True)) >= stored:
        raise ValueError(f"a tensor of shape {list(shape)} leaves its storage of {stored:,} elements"[:120])
    if math.prod(shape) > max(stored, REPEATED):
        raise ValueError(f"a tensor of shape {list(shape)} repeats a storage of {stored:,} elements"[:120])
    steps = tuple(stride * dtype.itemsize for stride in strides)
    return np.ndarray(shape, dtype, storage.data, offset * dtype.itemsize, steps)


def rebuild_any_dtype(
    storage: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, dtype: Any, *rest: Any
) -> Any:
    """A tensor of a dtype that no class of storages has, such as uint16."""
    if type(dtype) is not Global or dtype.name not in DTYPES:
        raise ValueError("a tensor's dtype is damaged")
    return rebuild_tensor(storage, offset, shape, strides, *rest, dtype=DTYPES[dtype.name])
