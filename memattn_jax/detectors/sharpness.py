"""Sharpness of Jeon et al. (ICML 2025, arXiv 2412.04140): curvature of the prompt's pull, along that pull.

    score = mean over probes of ‖(∇s_c − ∇s_u) (s_c − s_u)‖₂,   s = −ε / σ

at the first step. The paper squares the norm, its code does not, and neither do we. Cost: the forward of the noise norm
and two forward derivatives, about 3 UNet forwards a prompt and probe (the authors' code: 8). For a velocity model s is
the score −ε / σ too; the code's (√ᾱ v − x) / σ² has the opposite sign and, at the first step, nearly the same norm.
"""

from jax import Array
from jaxtyping import Float

from memattn_jax.detectors.first_step import FirstStep
from memattn_jax.detectors.noise_norm import norm
from memattn_jax.detectors.protocol import FirstStepDetector
from memattn_jax.pytree import pytree


def sharpness(curvature: Float[Array, "batch probes h w channels"], sigma: Float[Array, ""]) -> Float[Array, " batch"]:
    """Score of each row.

    Args:
      curvature: (J_c − J_u)(ε_c − ε_u), J the derivative of ε, float32 [batch, probes, h, w, channels].
      sigma: float32 [], √(1 − ᾱ); each of the two scores in the product brings 1 / σ.

    Returns:
      float32 [batch].
    """
    return norm(curvature).mean(axis=1) / sigma**2


@pytree
class Sharpness(FirstStepDetector):
    """See the module."""

    shared = frozenset({"noise"})
    derivatives = True

    def score(self, step: FirstStep) -> Array:
        """See `FirstStepDetector.score`."""
        return sharpness(step.jvp(step.difference), step.first.sigma)
