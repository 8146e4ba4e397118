"""Files mapped into memory, and the tensors in them.

A stored tensor is a read-only numpy view of the mapped file: slicing, reshaping and transposing it reads nothing, so
that a layout is a function of names and views.
"""

import mmap
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from memattn_jax.errors import InputError

LFS_POINTER = b"version https://git-lfs"
HTML = (b"<!doctype html", b"<html")
PAGE = mmap.PAGESIZE


class TensorFile(NamedTuple):
    """What a file holds.

    Attributes:
      tensors: views of the mapped file, in the dtype they are stored in.
      metadata: the `__metadata__` of safetensors, strings; of a pickle the entries beside the tensors.
    """

    tensors: dict[str, np.ndarray]
    metadata: dict[str, Any]


def refuse_page(path: Path, start: bytes) -> None:
    """Raises InputError for what a download leaves in a file's place: a git-lfs pointer or a web page.

    Args:
      path: names the file in the error.
      start: the file's first bytes.
    """
    if start.startswith(LFS_POINTER):
        raise InputError(f"{path}: is a git-lfs pointer, not the file itself; fetch it with `git lfs pull`")
    if start.lstrip().lower().startswith(HTML):
        raise InputError(f"{path}: is a web page, not the file itself; download the file again")


def refuse_pipe(path: Path) -> None:
    """Raises InputError for a folder, a pipe or a device, which may have no end."""
    if os.path.exists(path) and not os.path.isfile(path):  # pathlib's raise where the folder is not readable
        raise InputError(f"{path}: cannot be read (not a file but a folder, pipe or device)")


def map_file(path: Path) -> np.ndarray:
    """A file's bytes, uint8 [size], mapped and read-only.

    Raises:
      FileNotFoundError: no such file.
      InputError: an empty file, or one that cannot be read.
    """
    refuse_pipe(path)
    try:
        with path.open("rb") as file:
            return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except ValueError:
        raise InputError(f"{path}: is empty") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def forget(array: np.ndarray) -> None:
    """Lets the system take back the memory of a view's pages, which would stay in use beside the copy made of them."""
    base: Any = array
    while isinstance(base, np.ndarray):
        if base.base is None:
            return
        base = base.base
    if isinstance(base, memoryview):
        base = base.obj
    if not isinstance(base, mmap.mmap):
        return
    start, end = np.lib.array_utils.byte_bounds(array)
    origin = np.frombuffer(base, np.uint8).ctypes.data
    first, last = -(-(start - origin) // PAGE) * PAGE, (end - origin) // PAGE * PAGE  # pages that hold nothing else
    if last > first:
        base.madvise(mmap.MADV_DONTNEED, first, last - first)
