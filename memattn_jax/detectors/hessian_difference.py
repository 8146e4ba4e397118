"""Hessian difference, "Metric 2" of an ICML 2026 submission (github randomnameforicml/icml-2026).

    score = mean over probes of ‖∇ₓ ½‖ε_c‖² − ∇ₓ ½‖ε_u‖²‖₂² = ‖J_cᵀ ε_c − J_uᵀ ε_u‖₂²

at the first step. Cost: one forward and one reverse derivative, about 2 UNet forwards a prompt and probe where the
probes are shared, since the second term is then the model's alone (the authors' code: 6).
"""

from jax import Array
from jaxtyping import Float

from memattn_jax.detectors.first_step import FirstStep
from memattn_jax.detectors.noise_norm import norm
from memattn_jax.detectors.protocol import FirstStepDetector
from memattn_jax.pytree import pytree


def hessian_difference(
    conditional: Float[Array, "batch probes h w channels"], unconditional: Float[Array, "shared probes h w channels"]
) -> Float[Array, " batch"]:
    """Score of each row.

    Args:
      conditional: J_cᵀ ε_c, float32 [batch, probes, h, w, channels].
      unconditional: J_uᵀ ε_u, float32 [1 or batch, probes, h, w, channels].

    Returns:
      float32 [batch].
    """
    return (norm(conditional - unconditional) ** 2).mean(axis=1)


@pytree
class HessianDifference(FirstStepDetector):
    """See the module."""

    shared = frozenset({"energy_gradient"})
    derivatives = True

    def score(self, step: FirstStep) -> Array:
        """See `FirstStepDetector.score`."""
        return hessian_difference(step.vjp(step.conditional)[0], step.unconditional_energy_gradient)
