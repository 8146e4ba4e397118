"""Metrics E and D of Ren et al. (ECCV 2024, arXiv 2403.11052) on a finished sampling run.

Cost: none beyond the run. `first_step_entropy` needs no run: one conditional forward pass, cut off after its site.
"""

from typing import TYPE_CHECKING, Literal

import jax
from jax import Array

from memattn_jax.entropy import metric_d, metric_e
from memattn_jax.interceptors import Interceptor, TokenEntropy
from memattn_jax.models.unet import UNet2DConditionModel

if TYPE_CHECKING:
    from memattn_jax.pipeline import Samples


def entropy_e(run: "Samples", site: str | None = None) -> Array:
    """Metric E of every row, float32 [batch], by default at the model's site; see `memattn_jax.entropy.metric_e`."""
    return metric_e(run.tokens, site or run.entropy_site)


def entropy_d(run: "Samples", variant: Literal["code", "paper"] = "code") -> Array:
    """Metric D of every row, float32 [batch]; see `memattn_jax.entropy.metric_d`."""
    return metric_d(run.tokens, run.lengths, variant)


@jax.jit(static_argnames="site")
def first_step_entropy(
    unet: UNet2DConditionModel, latents: Array, timestep: Array, context: Array, *, site: str
) -> Array:
    """Metric E without sampling: about a tenth of a guidance pair, since nothing after the site is computed.

    Args:
      unet: the model.
      latents: [batch, height, width, channels], the scaled noise of the first step.
      timestep: [], the first of the schedule.
      context: text embeddings of the prompts [batch, tokens, channels].
      site: the cross-attention layer to read.

    Returns:
      float32 [batch].
    """
    interceptor = Interceptor(tap=TokenEntropy(sites=(site,)))
    _, taps = unet(latents, timestep, context, interceptor)
    return taps[site]
