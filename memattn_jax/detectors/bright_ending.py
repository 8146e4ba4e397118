"""Bright ending of Chen et al. (ICLR 2025, arXiv 2410.21665): the noise norm where the end token is looked at last.

    score = (1/T) Σ_t ‖(ε_c − ε_u)_t ⊙ m‖₂ / mean(m)

with m the attention to the end token at the last step, averaged over heads and the cross-attention layers of the first,
finest block. Cost: none beyond one sampling run (the authors' code runs the sampler twice): the squared difference of
each step is kept per pixel, and weighted when m is known. No gradients.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from memattn_jax.detectors.protocol import TrajectoryDetector
from memattn_jax.diffusion.sampling import Call
from memattn_jax.errors import InputError
from memattn_jax.heatmaps import FINEST
from memattn_jax.interceptors import EndTokenMap, Sites, Tap
from memattn_jax.pytree import pytree, static


def bright_ending(energy: Float[Array, "steps batch h w"], ending: Float[Array, "batch h w"]) -> Float[Array, " batch"]:
    """Score of each row.

    Args:
      energy: (ε_c − ε_u)² summed over channels, float32 [steps, batch, h, w].
      ending: m, float32 [batch, h, w].

    Returns:
      float32 [batch].
    """
    norms = jnp.sqrt(jnp.sum(energy * ending**2, axis=(-2, -1)))  # [steps, batch]
    return norms.mean(axis=0) / ending.mean(axis=(-2, -1))


@pytree
class BrightEnding(TrajectoryDetector):
    """See the module.

    Attributes:
      sites: where the end token's attention is read; None is the first block's cross-attention.
    """

    sites: Sites = static(default=None)

    def bind(self, model: Any, steps: int) -> "BrightEnding":
        """See `TrajectoryDetector.bind`."""
        sites = self.sites or tuple(site for site in model.sites if site.startswith(FINEST))
        if not sites:
            raise InputError("bright_ending reads the cross-attention of down_blocks.0, which this model lacks")
        return replace(self, sites=sites)

    @property
    def taps(self) -> Mapping[str, Tap]:
        """Where the end token is looked at."""
        return {"end token": EndTokenMap(sites=self.sites)}

    def observe(self, call: Call) -> tuple[Array, Array]:
        """The energy and the end token's attention at each pixel, [batch, h, w] both."""
        energy = jnp.sum(call.noise_difference**2, axis=-1)
        maps = jnp.stack(list(call.taps["end token"].values()))  # [sites, batch, pixels]
        return energy, maps.mean(axis=0).reshape(energy.shape)

    def finish(self, kept: tuple[Array, Array], lengths: Array) -> Array:
        """See `TrajectoryDetector.finish`."""
        energy, ending = kept
        return bright_ending(energy, ending[-1])
