"""Adam inside a compiled program, where each row stops by itself."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

FIRST, SECOND, TINY = 0.9, 0.999, 1e-8  # PyTorch's defaults


class Descent(NamedTuple):
    """Between two updates: values, Adam's moments, which rows have stopped, and the number of updates made."""

    values: Array
    mean: Array
    square: Array
    done: Array
    number: Array


def adam(state: Descent, slope: Array, rate: Array | float, decay: Array | float) -> tuple[Array, Array, Array]:
    """Values after one update, and Adam's moments; see `descend`."""
    number = state.number + 1
    mean = FIRST * state.mean + (1 - FIRST) * slope
    square = SECOND * state.square + (1 - SECOND) * slope**2
    # with 64 bits at hand, a number of Python's to the power of an array would be float64
    first, second = 1 - jnp.float32(FIRST) ** number, 1 - jnp.float32(SECOND) ** number
    step = (mean / first) / (jnp.sqrt(square / second) + TINY)
    return state.values * (1 - rate * decay) - rate * step, mean, square


def along(rows: Array, like: Array) -> Array:
    """Numbers of rows [batch], with as many axes as `like`."""
    return rows.reshape(-1, *[1] * (like.ndim - 1))


def descend(
    start: Array,
    losses: Callable[[Array], Array],
    active: Array,
    *,
    rate: Array | float,
    decay: Array | float = 0.0,
    target: Array | float,
    iterations: Array | int,
) -> Array:
    """Lowers the loss of each row until it is at most `target`: AdamW (Loshchilov & Hutter, arXiv 1711.05101).

    Losses are compared before each update, as in the papers' code, so that a row under the target at the start stays.
    The loop ends when all rows have stopped.

    Args:
      start: float32 [batch, ...].
      losses: values of that shape to the loss of each row, float32 [batch]; a row's must not depend on the others.
      active: bool [batch]; the other rows stay as they are.
      rate: step size.
      decay: of the values, decoupled from the gradient; 0 is Adam.
      target: the loss to stop at.
      iterations: updates at most.

    Returns:
      float32 [batch, ...].
    """

    def total(values: Array) -> tuple[Array, Array]:
        each = losses(values)
        return each.sum(), each

    def update(state: Descent) -> Descent:
        (_, each), slope = jax.value_and_grad(total, has_aux=True)(state.values)
        done = state.done | (each <= target)
        moved, mean, square = adam(state, slope, rate, decay)
        return Descent(jnp.where(along(done, moved), state.values, moved), mean, square, done, state.number + 1)

    def unfinished(state: Descent) -> Array:
        return ~state.done.all() & (state.number < iterations)

    zeros = jnp.zeros_like(start)
    return jax.lax.while_loop(unfinished, update, Descent(start, zeros, zeros, ~active, jnp.int32(0))).values
