"""Dynamical singularity metric of an ICML 2026 submission (github randomnameforicml/icml-2026), their DSM 0 → 1.

    score = mean over probes of ‖ε_c(x₁, t₁) − ε_c(x₀, t₀)‖₂²

with x₁ the latents after one guided step of DDIM from the probe x₀. How far the prediction for a memorized prompt moves
from the first step to the second. Cost: 2 UNet forwards a prompt and probe, the first of them that of the noise norm.
No gradients. The guidance is the detector's own, as a first-step detector depends on no sampling run.
"""

from jax import Array
from jaxtyping import Float

from memattn_jax.detectors.first_step import FirstStep
from memattn_jax.detectors.noise_norm import norm
from memattn_jax.detectors.protocol import FirstStepDetector
from memattn_jax.pytree import pytree


def dsm(
    first: Float[Array, "batch probes h w channels"], second: Float[Array, "batch probes h w channels"]
) -> Float[Array, " batch"]:
    """Score of each row.

    Args:
      first: ε_c at the first step, float32 [batch, probes, h, w, channels].
      second: ε_c at the second step, likewise.

    Returns:
      float32 [batch].
    """
    return (norm(second - first) ** 2).mean(axis=1)


@pytree
class Dsm(FirstStepDetector):
    """See the module.

    Attributes:
      guidance_scale: of the step from the first latents to the second; the authors'.
    """

    guidance_scale: float = 7.5

    shared = frozenset({"noise"})

    def score(self, step: FirstStep) -> Array:
        """See `FirstStepDetector.score`."""
        latents = step.after_step(step.unconditional + self.guidance_scale * step.difference)
        return dsm(step.conditional, step.predict(latents, step.second))
