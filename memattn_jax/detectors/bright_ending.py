"""Bright ending of Chen et al. (ICLR 2025, arXiv 2410.21665): the noise norm where the end token is looked at last.

    score = (1/T) Σ_t ‖(ε_c − ε_u)_t ⊙ m‖₂ / mean(m)

with m the attention to the end token at the last step, averaged over heads and the cross-attention layers of the first,
finest block. Cost: none beyond one sampling run (the authors' code runs the sampler twice): the squared difference of
each step is kept per pixel, and weighted when m is known. No gradients.
"""

import jax.numpy as jnp
from jax import Array


def bright_ending(energy: Array, ending: Array) -> Array:
    """Score of each row.

    Args:
      energy: (ε_c − ε_u)² summed over channels, float32 [steps, batch, h, w].
      ending: m, float32 [batch, h, w].

    Returns:
      float32 [batch].
    """
    norms = jnp.sqrt(jnp.sum(energy * ending**2, axis=(-2, -1)))  # [steps, batch]
    return norms.mean(axis=0) / ending.mean(axis=(-2, -1))
