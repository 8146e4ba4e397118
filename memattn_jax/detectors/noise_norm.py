"""Noise norm of Wen et al. (ICLR 2024, arXiv 2407.21720): how far the prompt moves the noise prediction.

    score = mean over probes and chosen steps of ‖ε_c − ε_u‖₂

Cost: 1 UNet forward a prompt and probe at the first step, where the probes are shared and ε_u is known; none beyond the
sampling run at later steps. No gradients. ε is the noise prediction whatever the model predicts: of a velocity model it
is √ᾱ v + √(1 − ᾱ) x, so at one step the norm is √ᾱ times that of the raw outputs, which the authors' code takes.
"""

import jax.numpy as jnp
from jax import Array

PIXELS = (-3, -2, -1)


def norm(values: Array) -> Array:
    """L2 norm over height, width and channels: [..., h, w, channels] to [...]."""
    return jnp.sqrt(jnp.sum(values**2, axis=PIXELS))


def noise_norm(difference: Array) -> Array:
    """Score of each row.

    Args:
      difference: ε_c − ε_u, float32 [batch, probes, h, w, channels].

    Returns:
      float32 [batch].
    """
    return norm(difference).mean(axis=1)


def noise_norm_over_steps(norms: Array, chosen: Array) -> Array:
    """Score of each row over a subset of a sampling run's steps.

    Args:
      norms: ‖ε_c − ε_u‖₂ at each step, float32 [steps, batch].
      chosen: bool [steps].

    Returns:
      float32 [batch].
    """
    return norms.mean(axis=0, where=chosen[:, None])
