"""Pillow's antialiased bilinear resizing, bit for bit, on the device; and on the host for pictures of many sizes.

Source: Pillow, src/libImaging/Resample.c (`precompute_coeffs`, `normalize_coeffs_8bpc`): a triangle filter as wide as
the scale, along rows first and along columns after that, each pass in fixed point with 22 bits and rounded to 8.
Pillow 13 takes the other order where it is faster, which changes some values by 1; published numbers are from before.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from PIL import Image

Crop = tuple[slice, slice]  # rows and columns
WHOLE = (slice(None), slice(None))
BITS = 22  # of a coefficient; the sum of a pixel's products then fits into 31


class Taps(NamedTuple):
    """What each output pixel of one axis is made of: int32 [out, taps], the inputs' indices and their coefficients."""

    indices: np.ndarray
    coefficients: np.ndarray


def taps(size: int, out: int) -> Taps:
    """Resizes an axis of `size` pixels to `out`."""
    scale = size / out
    reach = max(scale, 1.0)  # of the filter, in input pixels on either side
    centre = (np.arange(out) + 0.5) * scale
    first = np.maximum(centre - reach + 0.5, 0).astype(np.int64)
    end = np.minimum((centre + reach + 0.5).astype(np.int64), size)
    indices = first[:, None] + np.arange(2 * math.ceil(reach) + 1)
    weights = np.maximum(1 - np.abs((indices - centre[:, None] + 0.5) / reach), 0)
    weights = np.where(indices < end[:, None], weights, 0)
    total = np.cumsum(weights, axis=1)[:, -1:]  # in Pillow's order of adding
    coefficients = np.floor(weights / total * 2**BITS + 0.5)
    return Taps(np.minimum(indices, size - 1).astype(np.int32), coefficients.astype(np.int32))


def apply(pixels: Array, axis: int, taps: Taps) -> Array:
    """One pass: int32 pixels from 0 to 255 in, the same out, with the axis resized."""
    shape = [1] * pixels.ndim
    shape[axis] = -1
    total = jnp.int32(2 ** (BITS - 1))  # so that the shift rounds
    for index, coefficient in zip(taps.indices.T, taps.coefficients.T, strict=True):
        total = total + jnp.take(pixels, index, axis=axis) * coefficient.reshape(shape)
    return total >> BITS


def resize(pictures: Array, size: tuple[int, int], crop: Crop = WHOLE) -> Array:
    """Resizes pictures as `PIL.Image.resize(..., BILINEAR)` does, and crops them.

    Args:
      pictures: uint8 [n, h, w, channels].
      size: height and width.
      crop: rows and columns of the result to keep; the others are not computed.

    Returns:
      uint8 [n, *size, channels], or what the crop leaves of it.
    """
    pixels = pictures.astype(jnp.int32)
    for axis, out, kept in ((2, size[1], crop[1]), (1, size[0], crop[0])):
        all_taps = taps(pictures.shape[axis], out)
        pixels = apply(pixels, axis, Taps(all_taps.indices[kept], all_taps.coefficients[kept]))
    return pixels.astype(jnp.uint8)


def resize_on_host(picture: Image.Image, size: tuple[int, int], crop: Crop = WHOLE) -> np.ndarray:
    """The same of one RGB picture, by Pillow: no program is compiled for its size. uint8 [*size, 3], cropped."""
    for wanted in ((size[1], picture.height), (size[1], size[0])):  # a pass at a time, for their order
        if picture.size != wanted:
            picture = picture.resize(wanted, Image.Resampling.BILINEAR)
    return np.asarray(picture)[crop]
