"""What a row's seed decides: its starting noise, and the keys of what is drawn later."""

import jax
from jax import Array

from memattn_jax.keys import draw_rows, fixed_draws, seed_key


def row_keys(seeds: Array) -> Array:
    """A PRNG key of each row from its seed alone: uint32 [batch] to keys [batch]."""
    with fixed_draws():
        return jax.vmap(lambda seed: jax.random.fold_in(seed_key(0), seed))(seeds)


def step_keys(keys: Array, step: Array | int) -> Array:
    """Keys of each row for one step, [batch]; other ones than the starting noise is drawn with."""
    return fold(keys, step + 1)


def fold(keys: Array, number: Array | int) -> Array:
    """Other keys of each row, one for each number: [batch] to [batch]."""
    with fixed_draws():
        return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


def unit_noise(seeds: Array, shape: tuple[int, ...]) -> Array:
    """Starting noise of each row from its seed alone: uint32 [batch] to float32 [batch, *shape].

    Row i is drawn from `fold_in(key(0), seeds[i])`, so it does not depend on the rows beside it, nor on what the host
    program sets; see `memattn_jax.keys`.
    """
    return draw_rows(row_keys(seeds), shape)
