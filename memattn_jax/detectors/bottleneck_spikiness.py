"""Bottleneck spikiness of Zhang et al. (ICLR 2026, arXiv 2512.20963): a memorized image's features are few and large.

    score = standard deviation over all dimensions of h(x_t, t, e₀),   x_t = √ᾱ_t x₀ + √(1 − ᾱ_t) ε,   t = 50

with h the output of the UNet's middle block, x₀ the image's latents and e₀ the empty prompt's embedding. The image is
the one that a sampling run of the prompt ends with, or any other: see `score_images`. Cost: the sampling run, and the
way down of one more forward. No gradients.

The formula is that of the paper's text. The authors' code reads ResNets on the way up behind their nonlinearity, takes
the largest value over pixels and the deviation over channels, and has another timestep, 10, for a default.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from memattn_jax.detectors.protocol import ImageDetector, Images
from memattn_jax.diffusion.model import Model
from memattn_jax.errors import InputError
from memattn_jax.pytree import as_arrays, as_pytree, pytree
from memattn_jax.schedulers import SchedulerConfig, alphas_cumprod


def bottleneck_spikiness(features: Array) -> Array:
    """Score of each row: features [rows, ...] to float32 [rows]."""
    return jnp.std(features.astype(jnp.float32).reshape(len(features), -1), axis=1)


@pytree
class BottleneckSpikiness(ImageDetector):
    """See the module.

    Attributes:
      timestep: that noise is added for, low, so that the image stays visible.
      signal: ᾱ there; set by `bind`.
    """

    timestep: float = 50
    signal: Array | np.ndarray | float | None = None

    def bind(self, model: Any, steps: int) -> "BottleneckSpikiness":
        """See `TrajectoryDetector.bind`."""
        if not hasattr(model.unet, "bottleneck"):
            raise InputError(
                f"bottleneck_spikiness needs a method bottleneck of the UNet, which {type(model.unet).__name__} lacks; "
                "see memattn_jax.models.protocols"
            )
        signal = alphas_cumprod(SchedulerConfig.from_json(model.scheduler_config, "ddim"))
        if not 0 <= self.timestep < len(signal):
            raise InputError(f"bottleneck_spikiness: timestep {self.timestep} must be from 0 to {len(signal) - 1}")
        return replace(self, signal=float(signal[int(self.timestep)]))

    def score(self, images: Images) -> Array:
        """See `ImageDetector.score`."""
        assert self.signal is not None
        noisy = jnp.sqrt(self.signal) * images.latents + jnp.sqrt(1 - self.signal) * images.noise
        timestep = jnp.asarray(self.timestep, jnp.float32)
        return bottleneck_spikiness(images.unet.bottleneck(noisy, timestep, images.empty))


@jax.jit
def score_encoded(detector: ImageDetector, model: tuple[Any, Any], images: Array, noise: Array, empty: Array) -> Array:
    """Scores of images uint8 [rows, height, width, 3]; `model` is UNet and autoencoder."""
    unet, vae = model
    latents = vae.encode(images.astype(jnp.float32) / 127.5 - 1).mean.astype(jnp.float32) * vae.config.scaling_factor
    return detector.score(Images(unet, latents, noise, empty, empty))


def score_images(model: Model, images: np.ndarray, *, seeds: Sequence[int], detector: ImageDetector) -> np.ndarray:
    """Scores of images that you have, without their prompts.

    Args:
      model: the networks.
      images: uint8 [rows, height, width, 3].
      seeds: of each one's noise.
      detector: such as `BottleneckSpikiness()`.

    Returns:
      float32 [rows].
    """
    bound = as_arrays(as_pytree(detector.bind(model, 50)))
    noise = model.noise(seeds, *images.shape[1:3])
    empty = jnp.repeat(model.encode([""])[0], len(images), axis=0)
    return np.asarray(score_encoded(bound, (model.unet, model.vae), jnp.asarray(images), noise, empty))
