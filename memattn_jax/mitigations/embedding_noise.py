"""Gaussian noise on the text embeddings (Somepalli et al., NeurIPS 2023, arXiv 2305.20086), at no cost.

e ← e + scale · n,        n ~ N(0, I), drawn from the row's seed
"""

from jax import Array

from memattn_jax.diffusion.mitigation import Mitigation, Start
from memattn_jax.keys import draw_rows
from memattn_jax.pytree import pytree


@pytree
class EmbeddingNoise(Mitigation):
    """See the module.

    Attributes:
      scale: standard deviation of the noise.
    """

    scale: float = 0.1

    def embeddings(self, start: Start) -> Array:
        """See `Mitigation.embeddings`."""
        return start.context + self.scale * draw_rows(start.keys, start.context.shape[1:])
