"""Latent step deviation of Broken Memories (KDD 2026, arXiv 2605.22050): a sampling step unlike those of clean runs.

    uₜ = ‖x_{t−1} − x_t‖₂        score = maxₜ |uₜ − μₜ| / σₜ

with mean μₜ and standard deviation σₜ of uₜ over runs of clean prompts, at each step on its own. The formula was read
in two authors' notes on the paper and not in the paper itself, which has no public code.

Cost: none beyond the sampling run; no gradients. The clean runs are a calibration's, made by the same scheduler in as
many steps.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array


class CleanMoves(NamedTuple):
    """How far each step moves the latents of clean prompts, float32 [steps] each.

    Attributes:
      mean: of ‖x_{t−1} − x_t‖₂.
      deviation: its standard deviation; where it is 0 no deviation is measured.
    """

    mean: np.ndarray
    deviation: np.ndarray

    @classmethod
    def fit(cls, moves: np.ndarray) -> "CleanMoves":
        """From clean runs, float32 [runs, steps]."""
        return cls(moves.mean(axis=0), moves.std(axis=0))


def latent_step_deviation(moves: Array, clean: CleanMoves) -> Array:
    """Score of each run.

    Args:
      moves: ‖x_{t−1} − x_t‖₂, float32 [..., steps].
      clean: of clean prompts.

    Returns:
      float32 [...].
    """
    deviation = jnp.asarray(clean.deviation)
    scaled = jnp.abs(moves - clean.mean) / jnp.where(deviation > 0, deviation, jnp.inf)
    return scaled.max(axis=-1)
