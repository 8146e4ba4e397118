"""How attention and convolutions are computed: one form for each platform and shape, all equal to 1e-5.

A form is chosen when a program is lowered, by the platform that it is lowered for. Choices on the CPU were measured at
the sizes of Stable Diffusion 1.4; `scripts/bench.py` measures what they come to in the whole model.
"""

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend.backend import get_backend

BLOCKED_FROM = 1024  # pixels; below, the whole map is small and one matrix product is faster
QUERY_BLOCK = 512  # of one row and head: with 4,096 keys a block of the map is 8 MB, and stays in the cache
SMALLEST_BLOCK = 64
FUSED_DTYPES = (jnp.bfloat16, jnp.float16)
FUSED_HEAD_DIM = 128  # the most that cuDNN takes on every GPU
CHUNKED_FROM = 2**23  # numbers, 32 MB; what is less is not slower whole
CHUNK = 2**22
GATHERED_PIXELS = 512  # of the result, all rows; above, and
GATHERED_CHANNELS = 640  # below, XLA's own convolution is faster


def plain_attention(query: Array, keys: Array, values: Array, mask: Array | None = None) -> Array:
    """Attention by two matrix products, the softmax in float32.

    Args:
      query: [batch, queries, heads, head_dim].
      keys: [batch, keys, heads, head_dim].
      values: the same shape as keys.
      mask: bool [queries, keys], True where seen.

    Returns:
      [batch, queries, heads, head_dim], in the dtype of values.
    """
    # b batch, q queries, k keys, h heads, d head_dim
    # heads before pixels: XLA's batched matrix product on a CPU is several times faster when batch axes come first
    query, keys, values = (x.swapaxes(1, 2) for x in (query, keys, values))
    logits = jnp.einsum("bhqd,bhkd->bhqk", query, keys, preferred_element_type=jnp.float32)
    probs = jax.nn.softmax(logits / math.sqrt(query.shape[-1]), axis=-1, where=mask)
    return jnp.einsum("bhqk,bhkd->bhqd", probs.astype(values.dtype), values).swapaxes(1, 2)


def blocked_attention(query: Array, keys: Array, values: Array, rows_together: bool = False) -> Array:
    """`plain_attention` that holds one block of one map at a time, head after head of row after row.

    Args:
      query: [batch, pixels, heads, head_dim].
      keys: likewise.
      values: likewise.
      rows_together: whether a head of all rows takes one turn. Needed where rows are split over devices, which would
        exchange them in a loop from row to row; slower from four rows on, as a block is spread over more of them.
    """
    batch, pixels, heads, head_dim = query.shape
    together = batch if rows_together else 1

    def turns(x: Array) -> Array:  # t turns, r rows of one turn
        x = jnp.moveaxis(x, 2, 0)  # [heads, batch, pixels, head_dim]
        return x.reshape(-1, together, pixels, head_dim)

    def attend(turn: tuple[Array, Array, Array]) -> Array:
        query, keys, values = turn  # [r, pixels, head_dim], keys [r, head_dim, pixels]

        def attend_one(query: Array) -> Array:  # [r, head_dim]
            logits = jnp.einsum("rd,rdk->rk", query, keys, preferred_element_type=jnp.float32)
            weights = jnp.exp(logits - lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
            out = jnp.einsum("rk,rkd->rd", weights.astype(values.dtype), values)
            # divided after the product: head_dim numbers a query instead of one a key
            return (out / weights.sum(axis=-1, keepdims=True)).astype(values.dtype)

        block = max(QUERY_BLOCK // together, SMALLEST_BLOCK)
        return lax.map(attend_one, query.swapaxes(0, 1), batch_size=block).swapaxes(0, 1)

    scaled = query / math.sqrt(head_dim)
    out = lax.map(attend, (turns(scaled), turns(keys).swapaxes(2, 3), turns(values)))
    return jnp.moveaxis(out.reshape(heads, batch, pixels, head_dim), 0, 2)


def fused_attention(query: Array, keys: Array, values: Array) -> Array:
    """`plain_attention` by cuDNN's flash attention where it takes these arrays, else by XLA."""
    takes = query.dtype in FUSED_DTYPES and query.shape[-1] % 8 == 0 and query.shape[-1] <= FUSED_HEAD_DIM
    # tracing cuDNN's needs the library, which is absent where a program is only lowered for a GPU elsewhere
    kernel: Literal["cudnn", "xla"] = "cudnn" if takes and "cuda" in get_backend().platform_version else "xla"
    return jax.nn.dot_product_attention(query, keys, values, implementation=kernel)


def differentiable_attention(query: Array, keys: Array, values: Array, rows_together: bool) -> Array:
    """`self_attention` without fused kernels."""
    blocked = partial(blocked_attention, rows_together=rows_together)
    on_cpu = blocked if query.shape[1] >= BLOCKED_FROM else plain_attention
    return lax.platform_dependent(query, keys, values, cpu=on_cpu, default=jax.nn.dot_product_attention)


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def self_attention(query: Array, keys: Array, values: Array, rows_together: bool = False) -> Array:
    """Attention of pixels to pixels, [batch, pixels, heads, head_dim] each.

    On a CPU no large map is ever held, on an NVIDIA GPU none in half precision. Derivatives are those of XLA's forms,
    as cuDNN has no forward ones. `rows_together` is `blocked_attention`'s.
    """
    unfused = partial(differentiable_attention, rows_together=rows_together)
    return lax.platform_dependent(query, keys, values, cuda=fused_attention, default=unfused)


@self_attention.defjvp
def _self_attention_jvp(
    rows_together: bool, primals: tuple[Array, Array, Array], tangents: tuple[Array, Array, Array]
) -> tuple[Array, Array]:
    return jax.jvp(partial(differentiable_attention, rows_together=rows_together), primals, tangents)


def in_chunks(function: Callable[[Array], Array], x: Array, width: int) -> Array:
    """A function of each pixel alone; on a CPU some pixels at a time, so that what it holds stays in the cache.

    Args:
      function: [batch, channels] to [batch, other channels], and so with any leading axes.
      x: [batch, pixels, channels].
      width: the most numbers that it holds of one pixel.
    """
    batch, pixels, _ = x.shape
    if batch * pixels * width < CHUNKED_FROM:
        return function(x)
    chunk = 1 << max(1, CHUNK // (width * batch)).bit_length() - 1  # a power of two, which leaves no rest

    def chunked(x: Array) -> Array:
        return lax.map(function, x.swapaxes(0, 1), batch_size=chunk).swapaxes(0, 1)

    return lax.platform_dependent(x, cpu=chunked, default=function)


def direct_convolution(x: Array, kernel: Array, stride: int, border: tuple[int, int]) -> Array:
    """XLA's own 3 × 3 convolution; arguments as in `convolve`."""
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), (border, border), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def gathered_convolution(x: Array, kernel: Array, stride: int, border: tuple[int, int]) -> Array:
    """`direct_convolution` as one matrix product: the nine neighbours of each pixel side by side (im2col)."""
    padded = jnp.pad(x, ((0, 0), border, border, (0, 0)))
    _, height, width, channels = padded.shape
    neighbours = [
        padded[:, i : height - 2 + i : stride, j : width - 2 + j : stride] for i in range(3) for j in range(3)
    ]
    columns = jnp.concatenate(neighbours, axis=-1)  # [batch, h, w, 9 · in]
    out = columns.reshape(-1, 9 * channels) @ kernel.reshape(9 * channels, -1)  # [batch · h · w, out]
    return out.reshape(*columns.shape[:3], -1)


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
    pixels, channels = math.prod(x.shape[:3]) // stride**2, x.shape[3]
    if pixels > GATHERED_PIXELS or channels < GATHERED_CHANNELS:
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
    pixels = x.reshape(-1, channels)

    def multiply(weights: Array) -> Array:  # [in, out]
        return jnp.matmul(pixels, weights, preferred_element_type=jnp.float32)

    # in a loop, as XLA would copy all nine parts of the kernel beforehand
    products = lax.map(multiply, kernel.reshape(9, channels, -1))  # [9, batch · h · w, out]
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
