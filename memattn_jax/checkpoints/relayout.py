"""Kernels of convolutions from PyTorch's layout to ours, in one pass."""

import contextlib
import math
import mmap

import numpy as np

LANES = 64  # output channels of a block: what is read of it, one cache line each, stays in the smallest cache
FEWEST = 16
POPULATE_WRITE = 23  # of madvise, Linux 5.14 and later; Python has no name for it


def fresh(size: int) -> np.ndarray:
    """New memory, uint8 [size], from a page's beginning, so that JAX on a CPU takes it over without a copy.

    Its pages are asked for at once, which takes the system a quarter less time than one by one. They are small ones:
    numpy's own memory asks for large ones, which took up to six times as long where memory is in pieces.
    """
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # an older system, which gives the pages as they are written
        memory.madvise(POPULATE_WRITE)
    return np.frombuffer(memory, np.uint8)


def channels_last(kernel: np.ndarray) -> np.ndarray:
    """A contiguous copy of a kernel [h, w, in, out], a transposed view of [out, in, h, w].

    Neither numpy nor JAX goes through it in blocks, as h and w lie together in the one and far apart in the other.
    """
    height, width, channels, out = kernel.shape
    block = math.gcd(out, LANES)
    if block < FEWEST:
        block = out
    bits = np.dtype(f"u{kernel.itemsize}")  # copied as they are, whatever they mean
    split = (height, width, channels, out // block, block)
    copy = fresh(kernel.nbytes).view(bits).reshape(split)
    order = (3, 2, 0, 1, 4)  # of the loops, the innermost last
    np.positive(kernel.view(bits).reshape(split).transpose(order), out=copy.transpose(order), order="C")
    return copy.reshape(kernel.shape).view(kernel.dtype)
