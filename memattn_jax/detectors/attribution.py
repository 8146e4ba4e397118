"""Which tokens are to blame for a prompt's memorization."""

import jax.numpy as jnp
from jax import Array

from memattn_jax.detectors.first_step import FirstStep
from memattn_jax.detectors.noise_norm import norm


def token_gradients(step: FirstStep) -> Array:
    """How much each token moves the noise norm: ‖∂ mean‖ε_c − ε_u‖₂ / ∂eᵢ‖₂, float32 [batch, tokens].

    The conditional embeddings are differentiated: the authors' code hands the two halves of guidance over in the wrong
    order and differentiates the negative prompt's.

    Source: Wen et al. (ICLR 2024, arXiv 2407.21720) section 4.2.
    """
    lengths = norm(step.difference)[..., None, None, None]
    direction = jnp.where(lengths > 0, step.difference / jnp.where(lengths > 0, lengths, 1), 0)
    _, gradient = step.pull(direction / step.shape[1])
    return jnp.linalg.norm(gradient.astype(jnp.float32), axis=-1)
