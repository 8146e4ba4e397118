"""Denoising-free detection of Asthana & Belagiannis (ICLR 2026, arXiv 2601.20642): norm and angle of the guidance.

    score = γ₁ · ‖ε_c − ε_u‖₂ at the first step + γ₂ · mean cos(u, c − u) at the late one, on the same pure noise

with u and c the UNet's outputs at the late timestep and the cosine over channels, averaged over pixels; both are means
over probes. Cost: 2 UNet forwards a prompt and probe (the authors' code: 8); no gradients. The weights are the authors'
for Stable Diffusion 1.4 and 2; they were chosen on test prompts. For a velocity model the norm is that of their code's
scores, √ᾱ / σ² · ‖v_c − v_u‖.
"""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from memattn_jax.detectors.first_step import FirstStep
from memattn_jax.detectors.noise_norm import noise_norm
from memattn_jax.detectors.protocol import FirstStepDetector
from memattn_jax.pytree import pytree

WEIGHTS = {False: (1.0, 2.0), True: (1.0, 0.1)}  # γ₁, γ₂ by whether the model predicts velocity


def mean_cosine(
    u: Float[Array, "shared probes h w channels"], v: Float[Array, "batch probes h w channels"]
) -> Float[Array, " batch"]:
    """Cosine over channels, averaged over pixels and probes: [batch, probes, h, w, channels] to [batch].

    Norms are floored at 1e-8, as in PyTorch's `cosine_similarity`.
    """
    lengths = [jnp.maximum(jnp.linalg.norm(x, axis=-1), 1e-8) for x in (u, v)]
    cosine = jnp.sum(u * v, axis=-1) / (lengths[0] * lengths[1])  # [batch, probes, h, w]
    return cosine.mean(axis=(1, 2, 3))


def anisotropy(
    difference: Float[Array, "batch probes h w channels"],
    late_conditional: Float[Array, "batch probes h w channels"],
    late_unconditional: Float[Array, "shared probes h w channels"],
    sigma: Float[Array, ""],
    *,
    velocity: bool,
) -> Float[Array, " batch"]:
    """Score of each row.

    Args:
      difference: ε_c − ε_u at the first step, float32 [batch, probes, h, w, channels].
      late_conditional: the UNet's output at the late timestep, of the same shape.
      late_unconditional: likewise, [1 or batch, probes, h, w, channels].
      sigma: float32 [], √(1 − ᾱ) at the first step.
      velocity: whether the model predicts velocity.

    Returns:
      float32 [batch].
    """
    norm_weight, cosine_weight = WEIGHTS[velocity]
    scale = 1 / sigma**2 if velocity else 1.0
    cosine = mean_cosine(late_unconditional, late_conditional - late_unconditional)
    return norm_weight * scale * noise_norm(difference) + cosine_weight * cosine


@pytree
class Anisotropy(FirstStepDetector):
    """See the module."""

    shared = frozenset({"noise", "late"})

    def score(self, step: FirstStep) -> Array:
        """See `FirstStepDetector.score`."""
        late = (step.late_conditional, step.late_unconditional)
        return anisotropy(step.difference, *late, step.first.sigma, velocity=step.velocity)
