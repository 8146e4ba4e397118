"""The autoencoder: trained to return its pictures, then whitened."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from memattn_jax.models.vae import AutoencoderKL, Posterior

KL_WEIGHT = 1e-6


def to_values(pictures: Array) -> Array:
    """uint8 [batch, height, width, 3] to float32 in [-1, 1]."""
    return pictures.astype(jnp.float32) / 127.5 - 1


def reconstruction_loss(vae: AutoencoderKL, pictures: Array, key: Array, *, decoder_alone: bool = False) -> Array:
    """What a draw's reconstruction gets wrong, in values and in edges at two scales, and a little KL divergence.

    Measures of copies look at edges, which an error of values alone leaves blurred. With `decoder_alone` the encoder
    gets no gradient.
    """
    values = to_values(pictures)
    posterior = Posterior(*(moment.astype(jnp.float32) for moment in vae.encode(values)))
    if decoder_alone:
        posterior = jax.lax.stop_gradient(posterior)
    error = vae.decode(posterior.sample(key)).astype(jnp.float32) - values
    divergence = 0.5 * jnp.sum(
        posterior.mean**2 + jnp.exp(posterior.log_variance) - 1 - posterior.log_variance, axis=(1, 2, 3)
    )
    halved = nnx.avg_pool(error, (2, 2), (2, 2))
    return jnp.abs(error).mean() + steepness(error) + steepness(halved) + KL_WEIGHT * divergence.mean()


def steepness(error: Array) -> Array:
    """Mean absolute difference of neighbours, across and down; of an error, how far the gradients are off."""
    return jnp.abs(jnp.diff(error, axis=1)).mean() + jnp.abs(jnp.diff(error, axis=2)).mean()


def moments(vae: AutoencoderKL, pictures: Array | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean [channels] and covariance [channels, channels] of the latents' channels, over rows and pixels."""
    with jax.default_matmul_precision("highest"):  # GPUs would round to 10 bits
        latents = np.asarray(jax.jit(lambda vae, x: vae.encode(to_values(x)).mean)(vae, pictures), np.float64)
    flat = latents.reshape(-1, latents.shape[-1])
    return flat.mean(0), np.cov(flat.T)


def whiten(vae: AutoencoderKL, mean: np.ndarray, covariance: np.ndarray) -> None:
    """Makes the latents' channels uncorrelated, of mean 0 and variance 1, without changing a reconstruction.

    Latents become W(z − mean), W the inverse square root of the covariance (Kessy et al., arXiv 1512.00809, ZCA). The
    quantisation convolutions, 1 × 1 before and after the latents, take it in: W into the mean's half of the first, its
    inverse into the second. The posterior's variances are those of z along W's diagonal, which W nearly is.
    """
    values, vectors = np.linalg.eigh(covariance)
    whitening = vectors @ np.diag(values**-0.5) @ vectors.T
    channels = len(mean)
    kernel, bias = read(vae.quant_conv)  # [in, 2 · channels], [2 · channels]
    kernel[:, :channels] = kernel[:, :channels] @ whitening.T
    bias[:channels] = whitening @ (bias[:channels] - mean)
    bias[channels:] += 2 * np.log(np.diag(whitening))
    write(vae.quant_conv, kernel, bias)
    kernel, bias = read(vae.post_quant_conv)  # [channels, out], [out]
    write(vae.post_quant_conv, np.linalg.inv(whitening).T @ kernel, bias + mean @ kernel)


def read(conv: Any) -> tuple[np.ndarray, np.ndarray]:
    """Kernel [in, out] and bias [out] of a 1 × 1 convolution, float64."""
    return np.array(conv.kernel[0, 0], np.float64), np.array(conv.bias[...], np.float64)


def write(conv: Any, kernel: np.ndarray, bias: np.ndarray) -> None:
    """The inverse of `read`."""
    conv.kernel[...] = jnp.asarray(kernel[None, None], jnp.float32)
    conv.bias[...] = jnp.asarray(bias, jnp.float32)
