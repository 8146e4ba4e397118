"""Metrics E and D of Ren et al. (ECCV 2024, arXiv 2403.11052).

Cost of `entropy_e` and `entropy_d`: none beyond a finished sampling run. `EntropyE` needs no run: one conditional
forward pass, cut off after its site, about a tenth of a guidance pair. `EntropyD` follows a run of its own.
"""

from dataclasses import replace
from typing import Any, ClassVar

import jax.numpy as jnp
from jax import Array

from memattn_jax.detectors.first_step import FirstStep
from memattn_jax.detectors.protocol import FirstStepDetector, TrajectoryDetector
from memattn_jax.diffusion.samples import Samples
from memattn_jax.diffusion.sampling import Call
from memattn_jax.entropy import (
    METRIC_E_SITE,
    Variant,
    entropy_and_movement,
    entropy_over_heads,
    mean_over_sites,
    metric_d,
    metric_e,
)
from memattn_jax.errors import InputError
from memattn_jax.pytree import pytree, static


def entropy_e(run: Samples, site: str | None = None) -> Array:
    """Metric E of every row, float32 [batch], by default at the model's site; see `memattn_jax.entropy.metric_e`."""
    return metric_e(run.tokens, site or run.entropy_site)


def entropy_d(run: Samples, variant: Variant = "code") -> Array:
    """Metric D of every row, float32 [batch]; see `memattn_jax.entropy.metric_d`."""
    return metric_d(run.tokens, run.lengths, variant)


@pytree
class EntropyE(FirstStepDetector):
    """Metric E at the first step, mean over probes.

    Attributes:
      site: where it is read; None is the model's own, see `StableDiffusion.entropy_site`.
    """

    site: str | None = static(default=None)

    def bind(self, model: Any, steps: int) -> "EntropyE":
        """See `FirstStepDetector.bind`."""
        if self.site is None and model.entropy_site is None and len(model.sites) <= METRIC_E_SITE:
            raise InputError(
                f"entropy_e reads the fourth cross-attention layer; this model has {len(model.sites)}; set site"
            )
        return replace(self, site=model.site_of_entropy(self.site))

    def score(self, step: FirstStep) -> Array:
        """See `FirstStepDetector.score`."""
        return entropy_over_heads(step.tokens[self.site or step.entropy_site]).mean(axis=1)


@pytree
class EntropyD(TrajectoryDetector):
    """Metric D of a run in the form of the authors' code."""

    variant: ClassVar[Variant] = "code"

    def observe(self, call: Call) -> Array:
        """Attention per token, mean over pixels, heads and sites, [batch, tokens]."""
        return mean_over_sites(call.taps["tokens"])

    def finish(self, kept: Array, lengths: Array) -> Array:
        """See `TrajectoryDetector.finish`."""
        return entropy_and_movement(kept, jnp.asarray(lengths), self.variant)


@pytree
class EntropyDPaper(EntropyD):
    """The same in the form of the paper."""

    variant = "paper"
