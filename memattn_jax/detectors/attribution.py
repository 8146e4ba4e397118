"""Token attribution: how much each token contributes to a prompt's noise norm."""

from typing import Any

import jax.numpy as jnp
from jax import Array

from memattn_jax.detectors.first_step import FirstStep
from memattn_jax.detectors.noise_norm import norm


def rounding_floor(dtype: Any) -> float:
    """The part of a prediction's norm that is rounding error rather than a difference between prompts.

    Two forwards of one prompt in batches of different size were measured to differ by 0.6 units of half precision's
    rounding error, as sums are float32 and little but the result is rounded, and by up to 7 of float32's, whose sums
    round too; clean prompts of the built-in model differ from the empty one by 2 units of bfloat16's and more.
    """
    return max(float(jnp.finfo(dtype).eps), 64 * float(jnp.finfo(jnp.float32).eps))


def token_gradients(step: FirstStep) -> Array:
    """How much each token moves the noise norm: ‖∂ mean‖ε_c − ε_u‖₂ / ∂eᵢ‖₂, float32 [batch, tokens].

    The conditional embeddings are differentiated, as in the authors' code. That takes the mean of two norms, of which
    the unconditional half's is 0, so its gradients are half of these. A probe through which ε_c and ε_u differ by no
    more than `rounding_floor` of ‖ε_c‖ counts as 0: the direction of such a difference is rounding, yet of length 1.

    Source: Wen et al. (ICLR 2024, arXiv 2407.21720) section 4.2.
    """
    lengths, size = norm(step.difference), norm(step.conditional)  # [batch, probes]
    floor = rounding_floor(step.inputs.unet.dtype) * size
    inverse = jnp.where(lengths > floor, 1 / jnp.where(lengths > floor, lengths, 1), 0)
    direction = step.difference * inverse[..., None, None, None]
    _, gradient = step.vjp(direction / step.shape[1])
    return jnp.linalg.norm(gradient.astype(jnp.float32), axis=-1)
