"""Starting noise moved out of the attraction basin (Han et al., NeurIPS 2025, arXiv 2510.08625).

    batch-wise    x ← x − step · (D(x + radius · D(x) / ‖D(x)‖) − D(x)), a few times; then no guidance early in the run
    per-sample    x ← AdamW's step on ‖D(x)‖₂, until that is at most `target`; guidance from the start

with D = f(·, prompt) − f(·, ∅) at the first timestep, f the UNet's output. "Batch-wise" is the authors' word for an
adjustment that takes equally many passes for all rows; no row depends on another in either form. Cost, before the run:
four forwards a repeat; or two forwards and their backward pass an iteration.
"""

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax import Array

from memattn_jax.detectors.noise_norm import norm
from memattn_jax.diffusion.mitigation import Mitigation, Prediction, Start, Step
from memattn_jax.errors import check_name
from memattn_jax.mitigations.descent import descend
from memattn_jax.mitigations.noise_optimization import unit
from memattn_jax.pytree import pytree, static

Form = Literal["batch-wise", "per-sample"]


@pytree
class NoisePerturbation(Mitigation):
    """See the module. Defaults are the authors' for Stable Diffusion 1.4; for 2 they use radius 30 and four repeats.

    Attributes:
      form: see the module.
      radius: of the probe, batch-wise.
      step: size of a step, batch-wise.
      repeats: steps, batch-wise.
      unguided_until: timesteps over this have no guidance, batch-wise; with 50 steps the first five calls, as in the
        authors' code.
      target: of the norm, per sample.
      rate: step size, per sample.
      decay: of the noise, per sample.
      iterations: updates at most, per sample.

    Raises:
      InputError: an unknown form.
    """

    form: Form = static(default="batch-wise")
    radius: float = 50.0
    step: float = 0.7
    repeats: int = 2
    unguided_until: float = 900.0
    target: float = 0.9
    rate: float = 0.01
    decay: float = 0.01
    iterations: int = 1000

    def __post_init__(self) -> None:
        check_name("form", self.form, get_args(Form))

    def noise(self, start: Start) -> Array:
        """See `Mitigation.noise`."""

        def pull(x: Array) -> Array:
            return start.predict(x, start.context) - start.predict(x, start.negative)

        def adjust(_: int, x: Array) -> Array:
            here = pull(x)
            return x - self.step * (pull(x + self.radius * unit(here)) - here)

        if self.form == "batch-wise":
            return jax.lax.fori_loop(0, self.repeats, adjust, start.noise)
        return descend(
            start.noise,
            lambda x: norm(pull(x)),
            start.active,
            rate=self.rate,
            decay=self.decay,
            target=self.target,
            iterations=self.iterations,
        )

    def guidance(self, step: Step, prediction: Prediction, memory: Any) -> tuple[Prediction, Any]:
        """See `Mitigation.guidance`."""
        if self.form == "per-sample":
            return prediction, memory
        early = step.row.timestep > self.unguided_until
        return prediction._replace(scale=jnp.where(early, 0.0, prediction.scale)), memory
