"""Latent step deviation of Broken Memories (KDD 2026, arXiv 2605.22050): a sampling step unlike those of clean runs.

    uₜ = ‖x_{t−1} − x_t‖₂        score = maxₜ |uₜ − μₜ| / σₜ

with mean μₜ and standard deviation σₜ of uₜ over runs of clean prompts, at each step on its own. The formula was read
in two authors' notes on the paper and not in the paper itself, which has no public code.

Cost: none beyond the sampling run; no gradients. The clean runs are a calibration's, made by the same scheduler in as
many steps.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from memattn_jax.detectors.noise_norm import norm
from memattn_jax.detectors.protocol import TrajectoryDetector
from memattn_jax.diffusion.sampling import Call
from memattn_jax.errors import InputError
from memattn_jax.pytree import pytree


def latent_step_deviation(moves: Array, mean: Array | np.ndarray, deviation: Array | np.ndarray) -> Array:
    """Score of each run.

    Args:
      moves: ‖x_{t−1} − x_t‖₂, float32 [steps, runs].
      mean: of clean runs, float32 [steps].
      deviation: their standard deviation, likewise; where it is 0 no deviation is measured.

    Returns:
      float32 [runs].
    """
    deviation = jnp.asarray(deviation)[:, None]
    scaled = jnp.abs(moves - jnp.asarray(mean)[:, None]) / jnp.where(deviation > 0, deviation, jnp.inf)
    return scaled.max(axis=0)


@pytree
class LatentStepDeviation(TrajectoryDetector):
    """See the module; `fit` before it is used, as `detect --calibrate` does.

    Attributes:
      mean: how far each step moves the latents of clean prompts, float32 [steps]; None before it is fitted.
      deviation: the standard deviation of that, likewise.
    """

    mean: Array | np.ndarray | None = None
    deviation: Array | np.ndarray | None = None

    @property
    def fitted(self) -> bool:
        """See `TrajectoryDetector.fitted`."""
        return self.mean is not None

    def bind(self, model: Any, steps: int) -> "LatentStepDeviation":
        """See `TrajectoryDetector.bind`."""
        if self.mean is not None and len(self.mean) != steps:
            raise InputError(
                f"latent_step_deviation was fitted on runs of {len(self.mean)} steps, not of {steps}; use the "
                "same number, or fit it again with `detect --calibrate`"
            )
        return self

    def observe(self, call: Call) -> Array:
        """‖x_{t−1} − x_t‖₂, [batch]."""
        return norm(call.moved - call.latents)

    def finish(self, kept: Array, lengths: Array) -> Array:
        """See `TrajectoryDetector.finish`."""
        assert self.mean is not None
        assert self.deviation is not None
        return latent_step_deviation(kept, self.mean, self.deviation)

    def fit(self, kept: Any) -> "LatentStepDeviation":
        """See `TrajectoryDetector.fit`."""
        moves = np.asarray(kept)
        return LatentStepDeviation(moves.mean(axis=1), moves.std(axis=1))
