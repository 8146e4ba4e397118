"""Agreement of first predictions over noises, of NeMo (Hintersdorf et al., NeurIPS 2024, arXiv 2406.02366).

    score = largest MS-SSIM of two noises' nd,        nd = ε_c(x) − x, each channel rescaled to [0, 1]

at the first step: a memorized prompt's first prediction shows one image, whatever the noise. The noises are the probe,
and others that fixed permutations of its numbers give, which are as normal and nearly independent. Cost: one forward a
noise, that of the probe shared with the other detectors. No gradients.

The authors take ten seeds, the UNet's raw output, and, as their loop does not step the scheduler, the second timestep.
MS-SSIM is at up to three scales, fewer where the latents are small: scores of models of different sizes do not compare.
"""

from itertools import combinations

import jax.numpy as jnp
from jax import Array

from memattn_jax.detectors.first_step import FirstStep
from memattn_jax.detectors.noises import other_noise
from memattn_jax.detectors.protocol import FirstStepDetector
from memattn_jax.errors import InputError
from memattn_jax.pytree import pytree, static
from memattn_jax.ssim import multiscale_ssim, rescaled


def prediction_agreement(differences: Array) -> Array:
    """Score of each row.

    Args:
      differences: ε_c − x of each noise, float32 [noises, batch, probes, h, w, channels].

    Returns:
      float32 [batch].
    """
    scaled = rescaled(differences)
    alike = [multiscale_ssim(scaled[i], scaled[j]) for i, j in combinations(range(len(scaled)), 2)]
    return jnp.stack(alike).max(axis=0).mean(axis=1)


@pytree
class PredictionAgreement(FirstStepDetector):
    """See the module.

    Attributes:
      noises: compared with each other, at least two.

    Raises:
      InputError: fewer.
    """

    noises: int = static(default=4)

    def __post_init__(self) -> None:
        if self.noises < 2:
            raise InputError(f"noises is {self.noises}; agreement takes at least 2")

    def score(self, step: FirstStep) -> Array:
        """See `FirstStepDetector.score`."""
        probes = jnp.broadcast_to(step.inputs.probes, step.shape)
        others = [other_noise(probes, number) for number in range(1, self.noises)]
        noises = jnp.concatenate(others, axis=1)  # in one forward, which compiles sooner than one for each
        found = jnp.split(step.predict(noises) - noises, len(others), axis=1)
        return prediction_agreement(jnp.stack([step.conditional - probes, *found]))
