"""Attention of pixels to pixels on a TPU: JAX's fused kernel, and a form that is small and has derivatives."""

import math

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax import P as Spec
from jax.sharding import Mesh

from memattn_jax.interceptors.seam import attention_logits, weighted_values
from memattn_jax.models.kernels.blocks import even_block, overwrite

LANES = 128  # of a TPU's vectors; tiles are multiples of them
LARGEST_TILE = 512  # queries, and keys, of a tile: its logits are 1 MB
FLASH_DTYPES = (jnp.bfloat16, jnp.float32)  # a TPU has no float16
QUERY_BLOCK = 256  # of all rows and heads: 256 MB of logits for 8 rows of 8 heads and 4,096 keys


def flash_tile(pixels: int) -> int:
    """The largest tile that divides a number of pixels; 0 where none does."""
    return next((tile for tile in range(LARGEST_TILE, 0, -LANES) if pixels % tile == 0), 0)


def takes_flash(query: Array) -> bool:
    """Whether `flash_attention` takes arrays of this shape and dtype."""
    return query.dtype in FLASH_DTYPES and flash_tile(query.shape[1]) > 0


def flash_attention(query: Array, keys: Array, values: Array, mesh: Mesh | None = None) -> Array:
    """Attention by the flash kernel of JAX's Pallas library, which never holds a map (Dao et al., arXiv 2205.14135).

    Its derivative is a reverse one only, so `self_attention` takes none of it. XLA splits no kernel over devices by
    itself; here each device is given its own rows and heads.

    Args:
      query: [batch, pixels, heads, head_dim]; see `takes_flash`.
      keys: likewise.
      values: likewise.
      mesh: the devices that rows are split over by `data` and heads by `model`; what does not divide is computed on
        each. None is one device.
    """
    # a sixth of a second to import, which only a TPU needs
    from jax.experimental.pallas.ops.tpu import flash_attention as library

    _, pixels, heads, head_dim = query.shape
    tile = flash_tile(pixels)
    sizes = library.BlockSizes(block_q=tile, block_k_major=tile, block_k=tile, block_b=1)
    padding = -head_dim % LANES if head_dim > LANES else 0  # with zeros, which change neither product

    def attend(*arrays: Array) -> Array:
        heads_first = (jnp.pad(x.swapaxes(1, 2), (*[(0, 0)] * 3, (0, padding))) for x in arrays)
        out = library.flash_attention(*heads_first, sm_scale=1 / math.sqrt(head_dim), block_sizes=sizes)
        return out[..., :head_dim].swapaxes(1, 2)

    if mesh is None:
        return attend(query, keys, values)

    def axis(name: str, size: int) -> str | None:
        return name if size % mesh.shape[name] == 0 else None

    spec = Spec(axis("data", len(query)), None, axis("model", heads))
    split = jax.shard_map(attend, mesh=mesh, in_specs=(spec,) * 3, out_specs=spec, check_vma=False)
    return split(query, keys, values)


def rematerialized_attention(query: Array, keys: Array, values: Array) -> Array:
    """`attention.plain_attention` that holds the map of some queries at a time, its derivatives included.

    A derivative computes each block of the map again rather than keep it.

    Args:
      query: [batch, pixels, heads, head_dim].
      keys: likewise.
      values: likewise.
    """
    block = even_block(query.shape[1], QUERY_BLOCK)

    @jax.checkpoint
    def attend(query: Array, keys: Array, values: Array) -> Array:
        return weighted_values(jax.nn.softmax(attention_logits(query, keys), axis=-1), values)

    def make(start: Array) -> Array:
        return attend(lax.dynamic_slice_in_dim(query, start, block, axis=1), keys, values)

    return overwrite(query, make, block, axis=1)
