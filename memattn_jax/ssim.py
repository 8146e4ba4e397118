"""Structural similarity of images at several scales (Wang, Simoncelli & Bovik, Asilomar 2003)."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

KERNEL, SIGMA = 11, 1.5  # of the Gaussian window, in pixels
C1, C2 = 0.01**2, 0.03**2  # for values that span 1


def multiscale_ssim(
    x: Float[Array, "*rows h w channels"], y: Float[Array, "*rows h w channels"], scales: int = 3, weight: float = 0.33
) -> Float[Array, "*rows"]:
    """Similarity of images whose values span 1, as torchmetrics has it with `betas=(0.33,) * 3`.

        Π over scales (relu cₛ)^weight, with luminance in the last factor

    cₛ is the contrast and structure term, a mean over pixels where the window fits and over channels; images are halved
    by averaging between scales. Where they become smaller than the window, there are fewer scales; a window larger than
    the images themselves is cut to them.

    Args:
      x: [..., h, w, channels].
      y: likewise.
      scales: at most.
      weight: the power of each scale.

    Returns:
      float32 [...].
    """
    rows, size = x.shape[:-3], min(x.shape[-3:-1])
    x, y = (image.reshape(-1, *image.shape[-3:]) for image in (x, y))
    kernel = min(KERNEL, size - 1 + size % 2)
    count = next(n for n in range(scales, 0, -1) if n == 1 or size // 2 ** (n - 1) >= kernel)
    value = jnp.ones(len(x), jnp.float32)
    for scale in range(count):
        luminance, contrast = terms(x, y, kernel)
        full = contrast if scale < count - 1 else luminance * contrast
        value = value * jax.nn.relu(full.mean(axis=(1, 2, 3))) ** weight
        x, y = halved(x), halved(y)
    return value.reshape(rows)


def terms(x: Array, y: Array, kernel: int) -> tuple[Array, Array]:
    """Luminance, and contrast and structure, at each place of the window, [images, h, w, channels]."""
    offsets = np.arange(kernel) - kernel // 2
    window = np.exp(-(offsets**2) / (2 * SIGMA**2))
    weights = jnp.asarray(window / window.sum(), jnp.float32)

    def blurred(image: Array) -> Array:
        height, width = (size - kernel + 1 for size in image.shape[1:3])
        down = jnp.stack([image[:, i : i + height] for i in range(kernel)], axis=-1) @ weights
        return jnp.stack([down[:, :, i : i + width] for i in range(kernel)], axis=-1) @ weights

    mean_x, mean_y = blurred(x), blurred(y)
    variances = blurred(x**2) - mean_x**2 + blurred(y**2) - mean_y**2
    covariance = blurred(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
    return luminance, (2 * covariance + C2) / (variances + C2)


def halved(image: Array) -> Array:
    """Means of 2 × 2 pixels; an odd last row or column is left out."""
    images, height, width, channels = image.shape
    even = image[:, : height // 2 * 2, : width // 2 * 2]
    return even.reshape(images, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))


def rescaled(image: Float[Array, "*rows h w channels"]) -> Float[Array, "*rows h w channels"]:
    """Each channel of each image mapped to [0, 1]; a constant one becomes 0."""
    least, most = (f(image, axis=(-3, -2), keepdims=True) for f in (jnp.min, jnp.max))
    return (image - least) / jnp.where(most > least, most - least, 1.0)
