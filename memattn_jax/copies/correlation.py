"""Correlation of images, the largest over small shifts: whether a generated image reproduces a training image.

For a shift, let I be the part of the image that overlaps the shifted reference and R that part of the reference, each
less its mean in every channel. Then

    correlation = max over shifts of  Σ I R / √(Σ I² · Σ R²),

summed over the pixels and channels of the overlap; nothing wraps around. Without subtracting the means of channels, two
different images of one strong colour would correlate.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from memattn_jax.errors import InputError

REPRODUCED = 0.9  # correlation from which an image counts as reproduced, to be said with that and the reference
SHIFTS = 2  # pixels that a copy is expected to be off by, where images are searched for copies
VALUES = 2**24  # of images, and of references, compared at a time
FLAT = 1e-6  # norm below which what overlaps is flat, of images of norm 1: float32's rounding


@partial(jax.jit, static_argnums=2)
def largest(images: Array, references: Array, shifts: int) -> Array:
    """The largest correlation of images of norm 1, float32 [n, height, width, channels] and [m, …], as [n, m]."""
    _, height, width, _ = images.shape
    around = ((0, 0), (shifts, shifts), (shifts, shifts), (0, 0))
    padded, ones = jnp.pad(images, around), jnp.pad(jnp.ones((1, height, width, 1), images.dtype), around)

    def unit(x: Array, inside: Array) -> Array:
        x = (x - (x * inside).sum((1, 2), keepdims=True) / inside.sum()) * inside
        norm = jnp.sqrt((x**2).sum((1, 2, 3), keepdims=True))
        return (x * jnp.where(norm > FLAT, 1 / norm, 0)).reshape(len(x), -1)

    def update(best: Array, shift: Array) -> tuple[Array, None]:
        start = (0, shift // (2 * shifts + 1), shift % (2 * shifts + 1), 0)
        inside = lax.dynamic_slice(ones, start, (1, height, width, 1))
        moved = unit(lax.dynamic_slice(padded, start, images.shape), inside)
        return jnp.maximum(best, jnp.matmul(moved, unit(references, inside).T, precision="highest")), None

    start = jnp.full((len(images), len(references)), -jnp.inf, images.dtype)
    return lax.scan(update, start, jnp.arange((2 * shifts + 1) ** 2))[0]


def normalized_correlation(images: np.ndarray, references: np.ndarray, shifts: int = 0) -> np.ndarray:
    """Correlation of images with references, the largest over shifts; see the module for the formula.

    Args:
      images: [n, height, width, channels], any numbers.
      references: [m, height, width, channels].
      shifts: pixels that a reference is moved by at most, up, down, left and right.

    Returns:
      float32 [n, m], in [-1, 1]; 0 where what overlaps is flat.

    Raises:
      InputError: images of another shape than the references, or too small to be shifted.
    """
    size, other = images.shape[1:], references.shape[1:]
    if size != other:
        raise InputError(f"images {list(size)} and references {list(other)}; expected the same size")
    if not 0 <= shifts < min(size[:2]):
        raise InputError(f"shifts {shifts}: expected 0 or more, and less than the images' {size[0]} × {size[1]} pixels")
    block = max(1, VALUES // int(np.prod(size)))
    found = np.empty((len(images), len(references)), np.float32)
    for row in range(0, len(images), block):
        some = scaled(images[row : row + block])
        for column in range(0, len(references), block):
            others = scaled(references[column : column + block])
            found[row : row + block, column : column + block] = largest(some, others, shifts)
    return found


def scaled(images: np.ndarray) -> np.ndarray:
    """Less the mean of each channel, with norm 1, float32: flatness can then be told from rounding in any range."""
    x = np.asarray(images, np.float64)
    x = x - x.mean(axis=(1, 2), keepdims=True)
    norm = np.sqrt((x**2).sum(axis=(1, 2, 3), keepdims=True))
    flat = norm <= FLAT * np.abs(images).max(initial=0)
    return (x / np.where(flat, np.inf, norm)).astype(np.float32)
