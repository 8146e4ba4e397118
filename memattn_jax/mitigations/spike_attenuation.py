"""Attention spikes attenuated (GUARD, ICML 2026, arXiv 2603.00133): the tokens that stand out of a head are damped.

    M_i = max over pixels of the logit of token i
    z_i = (M_i − mean) / (standard deviation + 10⁻⁶), over all tokens but the begin token and masked ones
    logit_i ← strength · logit_i where z_i > threshold, the begin token never

of every conditional row and head, in the down and mid blocks. Read in the authors' code, which takes the logits, where
the paper speaks of attention mass. At the thresholds that it uses a large part of all tokens is a spike. Cost: none.
"""

import jax.numpy as jnp
from jax import Array

from memattn_jax.diffusion.mitigation import Mitigation, Step
from memattn_jax.interceptors import Attention, Context, Edit
from memattn_jax.interceptors.edits import conditional_rows
from memattn_jax.pytree import pytree


def attenuate(logits: Array, threshold: Array | float, strength: Array | float) -> Array:
    """Logits [batch, heads, pixels, tokens] with those of spikes multiplied by `strength`; see the module."""
    peak = logits.max(axis=2)  # [batch, heads, tokens]
    others = peak[..., 1:]
    finite = jnp.isfinite(others)  # which another edit's mask is not
    mean = others.mean(axis=-1, keepdims=True, where=finite)
    z = (peak - mean) / (others.std(axis=-1, ddof=1, keepdims=True, where=finite) + 1e-6)
    spike = (z > threshold) & (jnp.arange(peak.shape[-1]) > 0)
    return jnp.where(spike[:, :, None], strength * logits, logits)


@pytree
class AttenuateSpikes:
    """Edit: see the module; at layers of down and mid blocks alone."""

    threshold: Array | float
    strength: Array | float
    stage = "logits"

    def __call__(self, attention: Attention, context: Context) -> Attention:
        """See `Edit`."""
        if context.site.startswith("up_blocks"):
            return attention
        logits = attention.logits
        assert logits is not None
        damped = attenuate(logits, self.threshold, self.strength)
        conditional = conditional_rows(attention, context)[:, None, None, None]
        return attention._replace(logits=jnp.where(conditional, damped, logits))


@pytree
class SpikeAttenuation(Mitigation):
    """See the module.

    Attributes:
      threshold: standard deviations over the mean from which a token is a spike.
      strength: factor of a spike's logits.
    """

    threshold: float = 0.01
    strength: float = 0.3

    def edits(self, step: Step) -> tuple[Edit, ...]:
        """See `Mitigation.edits`."""
        return (AttenuateSpikes(self.threshold, self.strength),)
