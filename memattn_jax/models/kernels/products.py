"""Matrix products."""

import jax.numpy as jnp
from jax import Array, lax


def widened_product(left: Array, right: Array) -> Array:
    """`left @ right`, summed and returned in float32 and rounded afterwards."""
    return jnp.matmul(left, right, preferred_element_type=jnp.float32).astype(left.dtype)


def matrix_product(left: Array, right: Array) -> Array:
    """The product of two matrices, [m, k] and [k, n] to [m, n].

    On a CPU, XLA uses the processor's bfloat16 instructions only in products that are returned in float32; those that
    it returns in bfloat16 take two to four times as long, and longer than float32's.
    """
    if left.dtype != jnp.bfloat16 or right.dtype != jnp.bfloat16:
        return left @ right
    return lax.platform_dependent(left, right, cpu=widened_product, default=jnp.matmul)
