"""The denoising objective: noise is added to latents, the model predicts it (or the velocity)."""

import jax
import jax.numpy as jnp
from jax import Array

from memattn_jax.errors import InputError
from memattn_jax.keys import seed_key

TARGETS = ("epsilon", "v_prediction")  # what a UNet may predict


def per_row(values: Array, like: Array) -> Array:
    """[batch] to [batch, 1, 1, 1], to broadcast against latents."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def add_noise(latents: Array, noise: Array, signal: Array) -> Array:
    """Forward process, x_t = √ᾱ x₀ + √(1 − ᾱ) ε (Ho et al., arXiv 2006.11239, equation 4).

    Args:
      latents: x₀, float32 [batch, h, w, channels].
      noise: ε, of the same shape.
      signal: ᾱ at each row's timestep, float32 [batch].
    """
    return per_row(jnp.sqrt(signal), latents) * latents + per_row(jnp.sqrt(1 - signal), latents) * noise


def check_target(prediction_type: str) -> None:
    """Raises InputError for a prediction type without a training objective."""
    if prediction_type not in TARGETS:
        raise InputError(f"no training objective for prediction_type {prediction_type!r}, only {' and '.join(TARGETS)}")


def training_target(prediction_type: str, latents: Array, noise: Array, signal: Array) -> Array:
    """What the model should predict: ε, or v = √ᾱ ε − √(1 − ᾱ) x₀ (Salimans & Ho, arXiv 2202.00512).

    Arguments as in `add_noise`.

    Raises:
      InputError: a prediction type without a training objective.
    """
    check_target(prediction_type)
    if prediction_type == "epsilon":
        return noise
    return per_row(jnp.sqrt(signal), latents) * noise - per_row(jnp.sqrt(1 - signal), latents) * latents


def squared_error(prediction: Array, target: Array) -> Array:
    """Mean squared error of each row, float32 [batch]."""
    error = prediction.astype(jnp.float32) - target
    return jnp.mean(error**2, axis=tuple(range(1, error.ndim)))


def row_keys(seed: Array, step: Array, rows: int) -> Array:
    """A key for each row of one step's batch: draws do not depend on micro-batches or devices.

    They do not depend on the host program's default generator either; see `memattn_jax.keys`.
    """
    key = jax.random.fold_in(seed_key(seed), step)
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(rows))
