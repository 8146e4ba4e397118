"""SAIL: starting noise optimised for a flat spot (Jeon et al., ICML 2025, arXiv 2412.04140, algorithm 2).

    L(x) = ‖D(x + D(x) / ‖D(x)‖)‖₂ + weight · ‖x‖₂        D = f(·, prompt) − f(·, ∅) at the first timestep

by Adam, until L is at most `threshold`. f is the UNet's output; of a velocity model D differs from the score's by a
factor near one at the first step. Cost, before the run: four forwards and their backward pass an iteration.

The authors' code draws eight noises, takes the first that pass, and after three rounds without one raises the threshold
and draws others. Here a row keeps the noise that its seed gives. Their code also takes D(x) / ‖D(x)‖ at the noise that
a round started from; here, as in the algorithm, it is taken at x.
"""

import jax.numpy as jnp
from jax import Array

from memattn_jax.detectors.noise_norm import PIXELS, norm
from memattn_jax.diffusion.mitigation import Mitigation, Start
from memattn_jax.mitigations.descent import along, descend
from memattn_jax.pytree import pytree


def length(x: Array) -> Array:
    """Norms of rows of [batch, h, w, channels], whose derivative at zeros is 0 instead of NaN."""
    zero = (x == 0).all(axis=PIXELS)
    return jnp.where(zero, 0.0, norm(jnp.where(along(zero, x), 1.0, x)))


def unit(x: Array) -> Array:
    """Rows of [batch, h, w, channels] divided by their norm; a row of zeros stays."""
    own = length(x)
    return x / along(jnp.where(own > 0, own, 1.0), x)


@pytree
class NoiseOptimization(Mitigation):
    """See the module.

    Attributes:
      threshold: of the loss; the authors' for Stable Diffusion 1.4, where they try 7.6 to 9; for 2 it is 4 to 6.
      weight: of the noise's norm; for Stable Diffusion 2 they use 0.01.
      rate: step size.
      iterations: updates at most.
    """

    threshold: float = 8.2
    weight: float = 0.05
    rate: float = 0.05
    iterations: int = 10

    def noise(self, start: Start) -> Array:
        """See `Mitigation.noise`."""

        def pull(x: Array) -> Array:
            return start.predict(x, start.context) - start.predict(x, start.negative)

        def losses(x: Array) -> Array:
            return length(pull(x + unit(pull(x)))) + self.weight * norm(x)

        return descend(
            start.noise,
            losses,
            start.active,
            rate=self.rate,
            target=self.threshold,
            iterations=self.iterations,
        )
