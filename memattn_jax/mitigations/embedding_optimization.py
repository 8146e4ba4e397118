"""Prompt embeddings optimised before sampling (Wen et al., ICLR 2024, arXiv 2407.21720).

    e ← AdamW's step on ‖f(x_T, e) − f(x_T, ∅)‖₂, until that is at most `target`

with f the UNet's output at the first timestep, as in the authors' code: of a velocity model it is the velocity, not the
noise, and targets are on its scale. Cost, before the run: a forward and a backward pass an iteration, and one forward
of the negative prompt.
"""

import jax
import jax.numpy as jnp
from jax import Array

from memattn_jax.detectors.noise_norm import norm
from memattn_jax.diffusion.mitigation import Mitigation, Start
from memattn_jax.mitigations.descent import descend
from memattn_jax.pytree import pytree


@pytree
class EmbeddingOptimization(Mitigation):
    """See the module. The authors average over several images of a prompt; here each row has its own noise.

    Attributes:
      target: of the norm; 0 takes all iterations.
      rate: step size.
      iterations: updates at most.
      decay: of the embeddings, as by default in PyTorch's AdamW; the begin token has it too, though not the gradient.
    """

    target: float = 3.0
    rate: float = 0.05
    iterations: int = 10
    decay: float = 0.01

    def embeddings(self, start: Start) -> Array:
        """See `Mitigation.embeddings`."""
        unconditional = start.predict(start.noise, start.negative)

        def losses(context: Array) -> Array:
            begin = jax.lax.stop_gradient(context[:, :1])
            output = start.predict(start.noise, jnp.concatenate([begin, context[:, 1:]], axis=1))
            return norm(output - unconditional)

        return descend(
            start.context,
            losses,
            start.active,
            rate=self.rate,
            decay=self.decay,
            target=self.target,
            iterations=self.iterations,
        )
