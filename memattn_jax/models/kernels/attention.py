"""Attention of pixels to pixels."""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend.backend import get_backend
from jax.sharding import Mesh

from memattn_jax.interceptors.seam import attention_logits, weighted_values
from memattn_jax.models.kernels.blocks import even_block, overwrite
from memattn_jax.models.kernels.tpu_attention import flash_attention, rematerialized_attention, takes_flash

BLOCKED_FROM = 1024  # pixels; below, the whole map is small and one matrix product is faster
QUERY_BLOCK = 512  # of one row and head: with 4,096 keys a block of the map is 8 MB, and stays in the cache
SMALLEST_BLOCK = 64
FUSED_DTYPES = (jnp.bfloat16, jnp.float16)
FUSED_HEAD_DIM = 128  # the most that cuDNN takes on every GPU
FUSED_SINCE = 8.0  # compute capability from which it takes half precision

Form = Callable[[Array, Array, Array], Array]


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
    probs = jax.nn.softmax(attention_logits(query, keys), axis=-1, where=mask)
    return weighted_values(probs, values)


def blocked_attention(query: Array, keys: Array, values: Array, rows_together: bool = False) -> Array:
    """`plain_attention` that holds one block of one map at a time, head after head of row after row.

    Equal to it to 1e-5 in float32. In half precision weights are rounded before they are divided by their sum, there
    after it; both stay within 0.8 % (bfloat16) and 0.1 % (float16) of the largest number of the result in float32.

    Args:
      query: [batch, pixels, heads, head_dim].
      keys: likewise.
      values: likewise.
      rows_together: whether a head of all rows takes one turn. Needed where rows are split over devices, which would
        exchange them in a loop from row to row; slower from four rows on, as a block is spread over more of them.
    """
    batch, pixels, heads, head_dim = query.shape
    together = batch if rows_together else 1
    block = even_block(pixels, max(QUERY_BLOCK // together, SMALLEST_BLOCK))

    def turns(x: Array) -> Array:  # of one row, or of all of them
        x = jnp.moveaxis(x, 2, 0)  # [heads, batch, pixels, d]
        return x if rows_together else x.reshape(heads * batch, pixels, x.shape[-1])

    rounds = values.dtype != jnp.float32
    if rounds:  # a value of one brings the sum of the rounded weights along, which are not kept otherwise
        values = jnp.concatenate([values, jnp.ones_like(values[..., :1])], axis=-1)
    queries, keys, values = turns(query), turns(keys).swapaxes(-2, -1), turns(values)

    # of one row as products of two matrices: with an axis for it, XLA's library took a seventh longer
    def attend_row(query: Array, key: Array, value: Array) -> Array:
        def attend(start: Array) -> Array:
            some = lax.dynamic_slice_in_dim(query, start, block)  # [block, head_dim]
            logits = jnp.matmul(some, key, preferred_element_type=jnp.float32)  # [block, pixels]
            below = logits - lax.stop_gradient(logits.max(axis=-1, keepdims=True))
            weights = jnp.exp(below / math.sqrt(head_dim))  # not the queries, which half precision would round again
            # summed in float32, of which half precision's largest number is soon exceeded, and divided after the
            # product: head_dim numbers a query instead of one a key
            out = jnp.matmul(weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
            total = out[..., -1:] if rounds else weights.sum(axis=-1, keepdims=True)
            return (out[..., :head_dim] / total).astype(value.dtype)

        return overwrite(query, attend, block, axis=0)

    def turn(t: Array) -> Array:
        of_turn = (lax.dynamic_index_in_dim(x, t, keepdims=False) for x in (queries, keys, values))
        return (jax.vmap(attend_row) if rows_together else attend_row)(*of_turn)[None]

    out = overwrite(queries, turn, 1, axis=0)
    return jnp.moveaxis(out.reshape(heads, batch, pixels, head_dim), 0, 2)


def has_fused_kernels() -> bool:
    """Whether this machine's GPU runs cuDNN's flash attention: an NVIDIA one, no older than Ampere.

    Tracing it needs the library, which is absent where a program is only lowered for a GPU elsewhere.
    """
    backend = get_backend()
    return "cuda" in backend.platform_version and float(backend.local_devices()[0].compute_capability) >= FUSED_SINCE


def fused_attention(query: Array, keys: Array, values: Array) -> Array:
    """`plain_attention` by cuDNN's flash attention where it takes these arrays, else by XLA."""
    takes = query.dtype in FUSED_DTYPES and query.shape[-1] % 8 == 0 and query.shape[-1] <= FUSED_HEAD_DIM
    kernel: Literal["cudnn", "xla"] = "cudnn" if takes and has_fused_kernels() else "xla"
    return jax.nn.dot_product_attention(query, keys, values, implementation=kernel)


def differentiable_attention(query: Array, keys: Array, values: Array, mesh: Mesh | None) -> Array:
    """`self_attention` without fused kernels."""
    forms: dict[str, Form] = {"cpu": plain_attention}
    if query.shape[1] >= BLOCKED_FROM:
        on_cpu = partial(blocked_attention, rows_together=mesh is not None)
        forms = {"cpu": on_cpu, "tpu": rematerialized_attention}
    return lax.platform_dependent(query, keys, values, default=jax.nn.dot_product_attention, **forms)


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def self_attention(query: Array, keys: Array, values: Array, mesh: Mesh | None = None) -> Array:
    """Attention of pixels to pixels, [batch, pixels, heads, head_dim] each.

    No large map is ever held on a CPU or a TPU, and none in half precision on an NVIDIA GPU. Derivatives are those of
    XLA's forms, as fused kernels have no forward ones.

    Args:
      query: [batch, pixels, heads, head_dim].
      keys: likewise.
      values: likewise.
      mesh: the devices that rows are split over; None is one device.
    """
    forms: dict[str, Form] = {"cuda": fused_attention}
    # known while tracing, as JAX lowers the kernel of one platform for all that a program is exported for
    platform = get_backend().platform if mesh is None else mesh.devices.flat[0].platform
    if platform == "tpu" and query.shape[1] >= BLOCKED_FROM and takes_flash(query):
        forms["tpu"] = partial(flash_attention, mesh=mesh)
    return lax.platform_dependent(query, keys, values, default=partial(differentiable_attention, mesh=mesh), **forms)


@self_attention.defjvp
def _self_attention_jvp(
    mesh: Mesh | None, primals: tuple[Array, Array, Array], tangents: tuple[Array, Array, Array]
) -> tuple[Array, Array]:
    return jax.jvp(partial(differentiable_attention, mesh=mesh), primals, tangents)
