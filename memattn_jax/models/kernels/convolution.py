"""3 × 3 convolutions."""

import math
from collections.abc import Iterable
from functools import partial

import jax.numpy as jnp
from jax import Array, lax

from memattn_jax.models.kernels.blocks import CHUNK, even_block, overwrite
from memattn_jax.models.kernels.products import widened_product

GATHERED_PIXELS = 128  # of the result, all rows; above, and
GATHERED_CHANNELS = 640  # below, XLA's own convolution is faster in float32
GATHERED_OUT = 256  # and below, of the result, in bfloat16, whose instructions XLA uses in products alone


def direct_convolution(x: Array, kernel: Array, stride: int, border: tuple[int, int]) -> Array:
    """XLA's own 3 × 3 convolution; arguments as in `convolve`."""
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), (border, border), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def gathered_convolution(x: Array, kernel: Array, stride: int, border: tuple[int, int]) -> Array:
    """`direct_convolution` as matrix products of the nine neighbours of each pixel (im2col), some rows at a time."""
    padded = jnp.pad(x, ((0, 0), border, border, (0, 0)))
    batch, _, _, channels = padded.shape
    height, width = ((size - 3) // stride + 1 for size in padded.shape[1:3])
    weights = kernel.reshape(9 * channels, -1)
    block = even_block(height, CHUNK // (batch * width * 9 * channels))

    def rows(start: Array | int) -> Array:
        some = lax.dynamic_slice_in_dim(padded, start * stride, (block - 1) * stride + 3, axis=1)
        down, right = ((size - 1) * stride + 1 for size in (block, width))  # from the first neighbour to the last
        neighbours = [some[:, i : i + down : stride, j : j + right : stride] for i in range(3) for j in range(3)]
        columns = jnp.concatenate(neighbours, axis=-1)  # [batch, block, width, 9 · in]
        out = widened_product(columns.reshape(-1, 9 * channels), weights)  # [batch · block · width, out]
        return out.reshape(batch, block, width, -1)

    if block == height:
        return rows(0)
    out = jnp.broadcast_to(padded[:, :height, :width, :1], (batch, height, width, kernel.shape[3]))
    return overwrite(out, rows, block, axis=1)


def convolve(x: Array, kernel: Array, stride: int = 1, border: tuple[int, int] = (1, 1)) -> Array:
    """3 × 3 convolution.

    Args:
      x: [batch, h, w, in].
      kernel: [3, 3, in, out].
      stride: of both axes.
      border: zeros before and after both axes.

    Returns:
      [batch, ⌈h / stride⌉, ⌈w / stride⌉, out], with the default border.
    """
    form = partial(direct_convolution, stride=stride, border=border)
    pixels = math.prod(x.shape[:3]) // stride**2
    if x.dtype == jnp.bfloat16:
        gathers = kernel.shape[3] >= GATHERED_OUT
    else:
        gathers = pixels <= GATHERED_PIXELS and x.shape[3] >= GATHERED_CHANNELS
    if not gathers:
        return form(x, kernel)
    gathered = partial(gathered_convolution, stride=stride, border=border)
    return lax.platform_dependent(x, kernel, cpu=gathered, default=form)


def shifted(x: Array, axis: int, by: int) -> Array:
    """x with every element one place further along an axis (`by` is 1) or back (−1), and zeros where there was none."""
    padding = [(0, 0)] * x.ndim
    padding[axis] = (1, 0) if by > 0 else (0, 1)
    first = 0 if by > 0 else 1
    return lax.slice_in_dim(jnp.pad(x, padding), first, first + x.shape[axis], axis=axis)


def repeated_convolution(x: Array, kernel: Array) -> Array:
    """`upsample` as it reads: repeats pixels, then convolves."""
    return direct_convolution(x.repeat(2, axis=1).repeat(2, axis=2), kernel, 1, (1, 1))


def summed_convolution(x: Array, kernel: Array) -> Array:
    """`upsample` with a quarter of the products.

    The four copies of a pixel meet the same weights, so each pixel is multiplied once with each of the nine, and the
    products are added where they fall: an even row of the result takes the kernel's first row from the pixel above and
    the other two from its own, an odd row the first two from its own and the last from below; columns likewise.
    """
    batch, height, width, channels = x.shape
    pixels, weights = x.reshape(-1, channels), kernel.reshape(9, channels, -1)

    def multiply(part: Array) -> Array:
        own = lax.dynamic_index_in_dim(weights, part, keepdims=False)  # [in, out]
        return jnp.matmul(pixels, own, preferred_element_type=jnp.float32)[None]

    # in a loop, as XLA would copy all nine parts of the kernel beforehand
    out = jnp.broadcast_to(pixels[:, :1].astype(jnp.float32), (9, pixels.shape[0], weights.shape[2]))
    products = overwrite(out, multiply, 1, axis=0)  # [9, batch · h · w, out]
    products = products.reshape(3, 3, batch, height, width, -1)

    def add(three: Iterable[Array], axis: int) -> tuple[Array, Array]:
        first, middle, last = three
        return shifted(first, axis, 1) + middle + last, first + middle + shifted(last, axis, -1)

    by_row = [add(products[:, column], axis=1) for column in range(3)]  # [3 columns][even, odd]
    columns = [add(three, axis=2) for three in zip(*by_row, strict=True)]  # [2 rows][even, odd]
    rows = [jnp.stack(pair, axis=3) for pair in columns]  # each [batch, h, w, 2, out]
    return jnp.stack(rows, axis=2).reshape(batch, 2 * height, 2 * width, -1).astype(x.dtype)


def upsample(x: Array, kernel: Array) -> Array:
    """Doubles height and width by repeating pixels, then convolves: x [batch, h, w, in], kernel [3, 3, in, out]."""
    return lax.platform_dependent(x, kernel, cpu=summed_convolution, default=repeated_convolution)
