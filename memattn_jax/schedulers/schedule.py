"""A schedule: the table that the denoising loop scans over, and the solver that reads it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from memattn_jax.pytree import pytree, static

Coefficients = dict[str, Array]


class Solver(NamedTuple):
    """The traced half of a scheduler, two pure functions.

    Attributes:
      init: float32 zeros of the latents' shape to the memory before the first call.
      step: coefficients of one call, memory, model output and latents, in float32, to latents and memory. A stochastic
        solver takes a fifth argument, a PRNG key of each row for this call, [batch].
      stochastic: whether it draws noise.
    """

    init: Callable[[Array], Any]
    step: Callable[..., tuple[Array, Any]]
    stochastic: bool = False


def no_memory(zeros: Array) -> tuple[()]:
    """The `Solver.init` of a solver that remembers nothing."""
    return ()


class Row(NamedTuple):
    """One UNet call of a schedule: every leaf of `Schedule.rows()` without its leading axis.

    timestep and input_scale are float32 [], coefficients are the solver's own.
    """

    timestep: Array
    input_scale: Array
    coefficients: Coefficients


@pytree
class Schedule:
    """A solver and its numbers for a given count of steps, a pytree; only the solver is static.

    Attributes:
      timesteps: float32 [calls], what the UNet receives. PNDM makes more calls than steps.
      input_scale: float32 [calls], the latents are multiplied by it on their way into the UNet.
      init_noise_sigma: float32 [], unit noise times it is where sampling starts.
      coefficients: float32 or bool [calls, ...], what the solver reads.
      solver: the functions that read them.
    """

    timesteps: Array
    input_scale: Array
    init_noise_sigma: Array
    coefficients: Coefficients
    solver: Solver = static()

    def rows(self) -> Row:
        """The table to scan over: a Row whose leaves have a leading axis of length calls."""
        return Row(self.timesteps, self.input_scale, self.coefficients)

    def init(self, latents: Array) -> Any:
        """The solver's memory before the first call, float32, for latents of this shape."""
        return self.solver.init(jnp.zeros_like(latents, jnp.float32))

    def step(
        self, row: Row, memory: Any, model_output: Array, latents: Array, keys: Array | None = None
    ) -> tuple[Array, Any]:
        """Advances latents [batch, ...] by one UNet call, in float32; the result has the latents' dtype.

        Args:
          row: the call's row of `rows()`.
          memory: what `init` or the previous call returned.
          model_output: the UNet's output for `latents * row.input_scale` at `row.timestep`, after guidance.
          latents: any shape, that of model_output.
          keys: for a stochastic solver, a PRNG key of each row.
        """
        arrays = (model_output.astype(jnp.float32), latents.astype(jnp.float32))
        drawn = (keys,) if self.solver.stochastic else ()
        x, memory = self.solver.step(row.coefficients, memory, *arrays, *drawn)
        return x.astype(latents.dtype), memory


def tabulate(
    solver: Solver,
    timesteps: np.ndarray,
    *,
    input_scale: Any = 1.0,
    init_noise_sigma: Any = 1.0,
    **table: np.ndarray,
) -> Schedule:
    """Host arrays [calls, ...] to a schedule; `table` holds the solver's coefficients by name."""

    def place(values: np.ndarray) -> Array:
        return jnp.asarray(values, bool if values.dtype == bool else jnp.float32)

    return Schedule(
        timesteps=place(timesteps),
        input_scale=place(np.broadcast_to(input_scale, timesteps.shape)),
        init_noise_sigma=jnp.float32(init_noise_sigma),
        coefficients={name: place(values) for name, values in table.items()},
        solver=solver,
    )
