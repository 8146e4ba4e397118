"""Which tokens are to blame for a prompt's memorization."""

import jax.numpy as jnp
import numpy as np
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


def attention_excess(attention: np.ndarray, clean: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """How much more of the attention each prompt token takes than prompt tokens do in clean prompts.

    The paper's trigger tokens are those on which attention concentrates when a memorized prompt is generated.

    Args:
      attention: float32 [batch, tokens], see `Detection`.
      clean: float32 [tokens], the model's mean share of a prompt token at each position, see `Calibration`.
      lengths: int [batch], begin and end token counted.

    Returns:
      float32 [batch, tokens], the ratio; 0 at the begin token and from the end token on.
    """
    positions = np.arange(attention.shape[1])
    own = (positions > 0) & (positions < lengths[:, None] - 1)
    return np.where(own, attention / np.maximum(clean, 1e-12), 0.0)
