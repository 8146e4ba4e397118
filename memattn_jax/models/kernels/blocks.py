"""Loops over blocks of an array, for what would be too large whole."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array, lax

CHUNKED_FROM = 2**23  # numbers, 32 MB; what is less is not slower whole
CHUNK = 2**22  # numbers that a block's intermediate arrays have at most


def even_block(length: int, most: int) -> int:
    """The length, from 1 to `most`, that splits a length most evenly into as few blocks as can be."""
    blocks = -(-length // max(1, most))
    return -(-length // blocks)


def overwrite(out: Array, make: Callable[[Array], Array], block: int, axis: int) -> Array:
    """An array made block by block.

    `lax.map` starts from zeros. XLA on a CPU schedules first what depends on nothing, and so holds the zeros of every
    loop of a program from its beginning, as many bytes as all their results.

    Args:
      out: of the result's shape and dtype; any numbers that the blocks depend on, all of which are replaced.
      make: the block that begins at an index, int32 [].
      block: its length, at most the axis's. The last one begins earlier where it would pass the end.
      axis: the axis that blocks follow each other on.
    """
    length = out.shape[axis]
    starts = jnp.minimum(jnp.arange(0, length, block), length - block)

    def step(out: Array, start: Array) -> tuple[Array, None]:
        return lax.dynamic_update_slice_in_dim(out, make(start), start, axis), None

    return lax.scan(step, out, starts)[0]


def in_chunks(function: Callable[[Array], Array], x: Array, width: int) -> Array:
    """A function of each pixel alone; on a CPU some pixels at a time, so that what it holds stays in the cache.

    Args:
      function: [batch, pixels, channels] to the same.
      x: [batch, pixels, channels].
      width: the most numbers that it holds of one pixel.
    """
    batch, pixels, _ = x.shape
    if batch * pixels * width < CHUNKED_FROM:
        return function(x)
    chunk = even_block(pixels, CHUNK // (width * batch))

    def chunked(x: Array) -> Array:
        return overwrite(x, lambda start: function(lax.dynamic_slice_in_dim(x, start, chunk, axis=1)), chunk, axis=1)

    return lax.platform_dependent(x, cpu=chunked, default=function)
