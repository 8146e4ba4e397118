"""Arrays and numbers of numpy, of which checkpoints have a few beside the tensors: learning rates, metrics."""

import math
import re
from typing import Any

import numpy as np

from memattn_jax.checkpoints.pickles.tensors import AXES, is_size

NUMBER = re.compile("[<|=]?[fciub][0-9]{1,2}")


def make_dtype(text: Any, *_: Any) -> np.dtype:
    """A dtype of numbers: "f8", "i4", "b1"."""
    if type(text) is not str or not NUMBER.fullmatch(text):
        raise ValueError("a numpy dtype is not one of numbers")
    return np.dtype(text)


def make_scalar(dtype: Any, content: Any) -> Any:
    """A number, as one of Python's."""
    if not isinstance(dtype, np.dtype) or type(content) is not bytes or len(content) != dtype.itemsize:
        raise ValueError("a numpy number is damaged")
    return np.frombuffer(content, dtype)[0].item()


def make_array(*_: Any) -> np.ndarray:
    """An array to be filled by `set_array`."""
    return np.empty(0)


def set_array(array: np.ndarray, version: Any, shape: Any, dtype: Any, fortran: Any, content: Any) -> None:
    """Fills an array in place with its own `__setstate__`, once its arguments are checked."""
    if not isinstance(dtype, np.dtype) or type(content) is not bytes or type(shape) is not tuple:
        raise ValueError("a numpy array is damaged")
    if len(shape) > AXES or not all(map(is_size, shape)) or math.prod(shape) * dtype.itemsize != len(content):
        raise ValueError("a numpy array's shape does not fit its bytes")
    state: Any = (1, shape, dtype, bool(fortran), content)
    array.__setstate__(state)
