"""Guidance that begins after the attraction basin (Jain et al., CVPR 2025, arXiv 2411.16738).

    static      another scale while the timestep is over `until`
    dynamic     another scale until ‖ε_c − ε_u‖, from step to step, has passed its first minimum
    opposite    guidance away from the prompt, −w, until the step where 1 − cos(x_t, x_{t−1}) of a run guided that way
                has its first minimum; then towards it

Static with a negative scale, −2 and `until` 650 in the authors' code, is opposite guidance at a fixed transition. Cost:
none; opposite makes the run twice. The authors' dynamic code takes the norm over the whole batch, here it is each
row's; their opposite code flips its sign at every step and ends the process at the transition, so it is written here
from the paper's description.
"""

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax import Array

from memattn_jax.detectors.noise_norm import PIXELS, norm
from memattn_jax.diffusion.mitigation import Mitigation, Prediction, Start, Step
from memattn_jax.diffusion.noise import step_keys
from memattn_jax.errors import check_name
from memattn_jax.pytree import pytree, static
from memattn_jax.schedulers import Row

Transition = Literal["static", "dynamic", "opposite"]
FALLBACK = 5  # the step of the transition where the curve has no minimum, as in the authors' code


def first_minimum(curve: Array) -> Array:
    """The first local minimum from the third value on, int32 [batch], of a curve [steps, batch]; else `FALLBACK`.

    The authors' code skips a minimum at the second value where there is a later one; here it always does.
    """
    # more values, each as the last, are no minimum: there is something to look at in the shortest run
    curve = jnp.pad(curve, ((0, 3), (0, 0)), mode="edge")
    before, here, after = curve[1:-2], curve[2:-1], curve[3:]
    lowest = (here < before) & (here < after)
    return jnp.where(lowest.any(axis=0), jnp.argmax(lowest, axis=0) + 2, FALLBACK).astype(jnp.int32)


def cosine(x: Array, y: Array) -> Array:
    """Of rows of [batch, h, w, channels]: [batch]."""
    return (x * y).sum(PIXELS) / (norm(x) * norm(y))


@pytree
class GuidanceTransition(Mitigation):
    """See the module.

    Attributes:
      when: what decides on the transition.
      before: the scale before it, static and dynamic; 0 is the unconditional prediction, as in the paper. The authors'
        dynamic code has 1, the conditional prediction.
      until: the timestep of the static transition.

    Raises:
      InputError: an unknown transition.
    """

    when: Transition = static(default="static")
    before: float = 0.0
    until: float = 500.0

    def __post_init__(self) -> None:
        check_name("transition", self.when, get_args(Transition))

    def begin(self, start: Start) -> Any:
        """See `Mitigation.begin`: the last two norms and whether guidance has begun; or the step where it will."""
        rows = len(start.noise)
        if self.when == "dynamic":
            return jnp.zeros(rows, jnp.float32), jnp.zeros(rows, jnp.float32), jnp.zeros(rows, bool)
        if self.when == "opposite":
            return first_minimum(opposite_run(start))
        return ()

    def guidance(self, step: Step, prediction: Prediction, memory: Any) -> tuple[Prediction, Any]:
        """See `Mitigation.guidance`."""
        before = jnp.broadcast_to(jnp.float32(self.before), prediction.scale.shape)
        if self.when == "static":
            guided = jnp.broadcast_to(step.row.timestep <= self.until, before.shape)
        elif self.when == "dynamic":
            older, old, begun = memory
            here = norm(prediction.conditional - prediction.unconditional)
            guided = begun | ((older > old) & (here > old))  # zeros at the start are no minimum
            memory = (old, here, guided)
        else:
            guided, before = step.number >= memory, -prediction.scale
        return prediction._replace(scale=jnp.where(guided, prediction.scale, before)), memory


def opposite_run(start: Start) -> Array:
    """1 − cos(x_t, x_{t−1}) at each step of a run guided away from the prompt, float32 [steps, batch]."""
    schedule = start.schedule

    def advance(state: Any, numbered: tuple[Array, Row]) -> tuple[Any, Array]:
        (latents, solver), (number, row) = state, numbered
        conditional, unconditional = (start.call(latents, row, text) for text in (start.context, start.negative))
        guided = Prediction(conditional, unconditional, -start.guidance_scale).guided()
        moved, solver = schedule.step(row, solver, guided, latents, step_keys(start.keys, number))
        return (moved, solver), 1 - cosine(latents, moved)

    latents = start.noise * schedule.init_noise_sigma
    calls = jnp.arange(len(schedule.timesteps)), schedule.rows()
    return jax.lax.scan(advance, (latents, schedule.init(latents)), calls)[1]
