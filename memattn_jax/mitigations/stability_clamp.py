"""Latents kept where those of clean runs are (Broken Memories, KDD 2026, arXiv 2605.22050).

Of clean runs, at every step, mean μ and standard deviation σ of three norms: of the latents after it ‖z_{t−1}‖, of the
step ‖z_{t−1} − z_t‖, and of the clean image that is predicted, ‖ẑ₀‖. A norm outside μ ± width · σ is

    mild      in the first calls: ẑ₀ is scaled to ‖ẑ₀‖ = μ
    strong    in the others: the step, then the latents, are scaled to the nearest end of their region

The paper has no public code; regions, norms and the two stages were read in two authors' notes on it, not in the paper
itself. Which norm triggers which stage, and when the first gives way to the second, is a choice made here. Cost: none;
the clean runs once for each model, scheduler and number of steps.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from memattn_jax.detectors.noise_norm import norm
from memattn_jax.diffusion.mitigation import Mitigation, Prediction, Step
from memattn_jax.diffusion.run import observe_run
from memattn_jax.diffusion.sampling import Call
from memattn_jax.diffusion.settings import Settings
from memattn_jax.errors import InputError
from memattn_jax.mitigations.checks import check_counts, check_finite
from memattn_jax.mitigations.descent import along
from memattn_jax.mitigations.prompt_files import read_texts
from memattn_jax.pytree import host_only, pytree
from memattn_jax.schedulers import make_schedule
from memattn_jax.schedulers.clean import clean_prediction

LATENTS, STEP, CLEAN = range(3)  # of the three norms
TINY = 1e-12  # vectors of length 0 stay


@pytree
class Norms:
    """Observer of a run: the three norms, float32 [batch, 3]."""

    to_clean: Array | np.ndarray  # [calls, 2]

    def __call__(self, call: Call) -> Array:
        """See `Observer`."""
        of_latents, of_output = jnp.asarray(self.to_clean)[call.number]
        clean = of_latents * call.latents + of_output * call.guided
        return jnp.stack([norm(call.moved), norm(call.moved - call.latents), norm(clean)], axis=-1)


@pytree
class StabilityClamp(Mitigation):
    """See the module; `fit` before it is used, as the commands do.

    Attributes:
      clean: clean prompts, or a prompt file; the paper takes 50.
      width: of the regions, in standard deviations.
      mild_calls: calls of the mild stage.
      batch: clean runs sampled at once.
      regions: mean and standard deviation of each norm, float32 [1, calls, 3, 2]; None before it is fitted.
      to_clean: factors of latents and output that make ẑ₀ of them, float32 [1, calls, 2]; likewise.

    Raises:
      FileNotFoundError: no such file.
      InputError: a file without prompts, or a number out of range.
    """

    clean: Sequence[str] | str | Path = host_only(default=())
    width: float = 3.0
    mild_calls: int = 5
    batch: int = host_only(default=8)
    regions: Array | np.ndarray | None = None
    to_clean: Array | np.ndarray | None = None

    def __post_init__(self) -> None:
        check_counts(1, batch=self.batch)
        object.__setattr__(self, "clean", read_texts(self.clean))

    def check(self) -> None:
        """See `Mitigation.check`: fewer than two clean prompts, of which there is no standard deviation."""
        if (given := len(read_texts(self.clean))) < 2:
            raise InputError(f"stability_clamp learns from clean prompts; clean=FILE has {given}, expected 50 or so")

    def fit(self, model: Any, **settings: Any) -> "StabilityClamp":
        """See `Mitigation.fit`.

        Raises:
          InputError: fewer than two clean prompts, or a run of them that is not finite.
        """
        if self.regions is not None:
            return self
        self.check()
        clean = read_texts(self.clean)
        run = Settings(**settings)
        schedule = make_schedule(model.scheduler_config, run.scheduler, run.steps)
        to_clean = clean_prediction(model.scheduler_config, schedule, run.scheduler)
        kept = []
        for first in range(0, len(clean), self.batch):
            prompts = clean[first : first + self.batch]
            seeds = range(first, first + len(prompts))
            kept.append(observe_run(model, prompts, replace(run, seeds=tuple(seeds)), Norms(to_clean)))
        norms = np.concatenate(kept, axis=1)  # [calls, runs, 3]
        check_finite("stability_clamp: a run of the clean prompts", norms)
        regions = np.stack([norms.mean(axis=1), norms.std(axis=1)], axis=-1)
        return replace(self, regions=regions[None].astype(np.float32), to_clean=to_clean[None])

    def guidance(self, step: Step, prediction: Prediction, memory: Any) -> tuple[Prediction, Any]:
        """See `Mitigation.guidance`: the mild stage.

        Raises:
          InputError: it is not fitted, or for another number of steps.
        """
        if self.regions is None or self.regions.shape[1] != step.calls:
            known = "is not fitted" if self.regions is None else f"was fitted on runs of {self.regions.shape[1]} calls"
            raise InputError(f"stability_clamp {known}; this run has {step.calls}: fit(model, steps=…, scheduler=…)")
        guided = prediction.guided()
        of_latents, of_output = jnp.asarray(self.to_clean)[0, step.number]
        clean = of_latents * step.latents + of_output * guided
        length = norm(clean)
        mean, deviation = jnp.asarray(self.regions)[0, step.number, CLEAN]
        outside = (jnp.abs(length - mean) > self.width * deviation) & (step.number < self.mild_calls)
        scaled = (clean * along(mean / jnp.maximum(length, TINY), clean) - of_latents * step.latents) / of_output
        result = jnp.where(along(outside, clean), scaled, guided)
        return Prediction(result, result, jnp.ones_like(prediction.scale)), memory

    def update(self, step: Step, moved: Array) -> Array:
        """See `Mitigation.update`: the strong stage."""
        clamped = step.latents + self.clamp(moved - step.latents, step.number, STEP)
        clamped = self.clamp(clamped, step.number, LATENTS)
        return jnp.where(step.number < self.mild_calls, moved, clamped)

    def clamp(self, x: Array, number: Array, which: int) -> Array:
        """Rows scaled into the region of one of the norms at a call."""
        mean, deviation = jnp.asarray(self.regions)[0, number, which]
        length = norm(x)
        inside = jnp.clip(length, mean - self.width * deviation, mean + self.width * deviation)
        return x * along(inside / jnp.maximum(length, TINY), x)
