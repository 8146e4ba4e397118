"""Condition Jacobian: how strongly the noise prediction reacts to the text embedding, from the empty prompt's side.

    score = mean over probes of ‖∂ε(x, e) / ∂e · (e − e₀)‖₂   at the prompt's embedding e, with e₀ the empty prompt's

at the first step. **An inference**: only the abstract of "condition Jacobian" (OpenReview pY2P28M9Iv) was read, which
scores a prompt by the derivative of the noise prediction by the text embedding at the prompt; its functional is not
known. Along e − e₀ it is the last point of the path whose integral is ε_c − ε_u. Cost: one forward and one forward
derivative, about 2 UNet forwards a prompt and probe; the empty prompt is not predicted.
"""

from jax import Array
from jaxtyping import Float

from memattn_jax.detectors.first_step import FirstStep
from memattn_jax.detectors.noise_norm import norm
from memattn_jax.detectors.protocol import FirstStepDetector
from memattn_jax.pytree import pytree


def condition_jacobian(derivative: Float[Array, "batch probes h w channels"]) -> Float[Array, " batch"]:
    """Score of each row.

    Args:
      derivative: ∂ε/∂e · (e − e₀), float32 [batch, probes, h, w, channels].

    Returns:
      float32 [batch].
    """
    return norm(derivative).mean(axis=1)


@pytree
class ConditionJacobian(FirstStepDetector):
    """See the module."""

    derivatives = True

    def score(self, step: FirstStep) -> Array:
        """See `FirstStepDetector.score`."""
        return condition_jacobian(step.context_jvp(step.inputs.context - step.inputs.empty))
