"""The rows that the UNet has of each prompt: under guidance two neighbours, the unconditional one first, else one.

Neighbours lie on one device where a batch is spread over several, so that guidance exchanges nothing between them. (The
reference and diffusers stack all unconditional rows before all conditional ones.) Numbers of each prompt become numbers
of each row by `interceptors.for_rows`.
"""

import jax.numpy as jnp
from jax import Array


def interleave(unconditional: Array, conditional: Array) -> Array:
    """[batch, ...] each to [2 · batch, ...]."""
    return jnp.stack([unconditional, conditional], axis=1).reshape(-1, *conditional.shape[1:])


def by_prompt(rows: Array, batch: int) -> Array:
    """[rows, ...] to [batch, rows of a prompt, ...]; the last row of each prompt is its conditional one."""
    return rows.reshape(batch, len(rows) // batch, *rows.shape[1:])
