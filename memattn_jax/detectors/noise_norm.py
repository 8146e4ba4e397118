"""Noise norm of Wen et al. (ICLR 2024, arXiv 2407.21720): how much the prompt changes the noise prediction.

    score = mean over probes and chosen steps of ‖ε_c − ε_u‖₂

Cost: 1 UNet forward a prompt and probe at the first step, where the probes are shared and ε_u is known; none beyond the
sampling run at later steps. No gradients. ε is the noise prediction whatever the model predicts: of a velocity model it
is √ᾱ v + √(1 − ᾱ) x, so at one step the norm is √ᾱ times that of the raw outputs, which the authors' code takes.
"""

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float

from memattn_jax.detectors.first_step import FirstStep
from memattn_jax.detectors.protocol import FirstStepDetector, TrajectoryDetector
from memattn_jax.diffusion.sampling import Call
from memattn_jax.errors import InputError
from memattn_jax.pytree import pytree, static

PIXELS = (-3, -2, -1)


def norm(values: Float[Array, "*rows h w channels"]) -> Float[Array, "*rows"]:
    """L2 norm over height, width and channels: [..., h, w, channels] to [...]."""
    return jnp.sqrt(jnp.sum(values**2, axis=PIXELS))


def noise_norm(difference: Float[Array, "batch probes h w channels"]) -> Float[Array, " batch"]:
    """Score of each row.

    Args:
      difference: ε_c − ε_u, float32 [batch, probes, h, w, channels].

    Returns:
      float32 [batch].
    """
    return norm(difference).mean(axis=1)


def noise_norm_over_steps(norms: Float[Array, "steps batch"], chosen: Bool[Array, " steps"]) -> Float[Array, " batch"]:
    """Score of each row over a subset of a sampling run's steps.

    Args:
      norms: ‖ε_c − ε_u‖₂ at each step, float32 [steps, batch].
      chosen: bool [steps].

    Returns:
      float32 [batch].
    """
    return norms.mean(axis=0, where=chosen[:, None])


@pytree
class NoiseNorm(FirstStepDetector):
    """At the first step."""

    shared = frozenset({"noise"})

    def score(self, step: FirstStep) -> Array:
        """See `FirstStepDetector.score`."""
        return noise_norm(step.difference)


@pytree
class NoiseNormSteps(TrajectoryDetector):
    """Over the steps of a sampling run.

    Attributes:
      noise_norm_steps: those to average over, counted from 0; None is all.
      chosen: the same for runs of one number of steps, bool [steps].
    """

    noise_norm_steps: tuple[int, ...] | None = static(default=None)
    chosen: Array | np.ndarray | None = None

    def bind(self, model: Any, steps: int) -> "NoiseNormSteps":
        """See `TrajectoryDetector.bind`."""
        every = np.arange(steps)
        wanted = every if self.noise_norm_steps is None else np.asarray(self.noise_norm_steps)
        if not wanted.size:
            raise InputError("noise_norm_steps: no steps; None stands for all")
        for step in wanted:
            if not 0 <= step < steps:
                raise InputError(f"noise_norm_steps: step {step} must be from 0 to {steps - 1}")
        chosen = np.isin(every, wanted)
        return replace(self, noise_norm_steps=None, chosen=chosen)  # a traced number: others compile nothing

    def observe(self, call: Call) -> Array:
        """‖ε_c − ε_u‖₂, [batch]."""
        return norm(call.noise_difference)

    def finish(self, kept: Array, lengths: Array) -> Array:
        """See `TrajectoryDetector.finish`."""
        assert self.chosen is not None
        return noise_norm_over_steps(kept, jnp.asarray(self.chosen))
