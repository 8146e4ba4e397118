"""More noise from a probe's, for detectors that look through several."""

import numpy as np
from jax import Array


def other_noise(probes: Array, number: int) -> Array:
    """Noise of the same numbers at other places, which a fixed permutation gives: as normal, and nearly independent.

    Args:
      probes: unit noise, [..., h, w, channels].
      number: of the permutation.

    Returns:
      The same shape.
    """
    rows, size = probes.shape[:-3], int(np.prod(probes.shape[-3:]))
    order = np.random.default_rng(number).permutation(size)
    return probes.reshape(*rows, size)[..., order].reshape(probes.shape)
