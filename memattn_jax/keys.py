"""Random numbers that no setting of the host program changes.

What a seed gives is part of a result. JAX's default generator, and which of two ways Threefry counts in, are settings
of the whole process (`jax_default_prng_impl`, `jax_threefry_partitionable`, `jax_random_seed_offset`), and so is the
width that numbers are drawn in (`jax_enable_x64`). Here all of them are fixed to JAX's own defaults.
"""

import math
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


def seed_key(seed: Array | int) -> Array:
    """The Threefry key of a seed in [0, 2³²), as `jax.random.key` has it by default."""
    words = jnp.stack([jnp.uint32(0), jnp.asarray(seed, jnp.uint32)])
    return jax.random.wrap_key_data(words, impl="threefry2x32")


def draw_rows(keys: Array, shape: tuple[int, ...]) -> Array:
    """Unit noise of each row from its key alone: keys [batch] to float32 [batch, *shape]."""
    with fixed_draws():
        return jax.vmap(lambda key: unit_normal(key, shape))(keys)


def unit_normal(key: Array, shape: tuple[int, ...]) -> Array:
    """The numbers of `jax.random.normal` in float32, within `fixed_draws`.

    They are drawn as a vector: XLA on a CPU takes ten times as long to compile a draw over several axes.
    """
    return jax.random.normal(key, (math.prod(shape),), jnp.float32).reshape(shape)


def fixed_draws() -> AbstractContextManager[Any]:
    """Within it, keys are split and numbers drawn as by default; dtypes remain to be given with each draw."""
    return jax.threefry_partitionable(True)
