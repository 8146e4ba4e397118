"""The denoising loop: one compiled program, one `lax.scan` over the scheduler's calls, taps kept per call."""

import jax
import jax.numpy as jnp
from jax import Array

from memattn_jax.interceptors import Interceptor
from memattn_jax.models.attention import Taps
from memattn_jax.models.unet import UNet2DConditionModel
from memattn_jax.schedulers import Schedule


def unit_noise(seeds: Array, shape: tuple[int, ...]) -> Array:
    """Starting noise of each row from its seed alone: uint32 [batch] to float32 [batch, *shape].

    Row i is drawn from `fold_in(key(0), seeds[i])`, so it does not depend on the rows beside it.
    """
    keys = jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(0), seed))(seeds)
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def guide(prediction: Array, guidance_scale: Array) -> Array:
    """Classifier-free guidance: float32 [2 · batch, ...], unconditional rows first, to [batch, ...].

    Source: Ho & Salimans, arXiv 2207.12598.
    """
    unconditional, conditional = jnp.split(prediction, 2)
    scale = jnp.broadcast_to(guidance_scale, conditional.shape[:1]).reshape(-1, 1, 1, 1)
    return unconditional + scale * (conditional - unconditional)


@jax.jit
def denoise(
    unet: UNet2DConditionModel,
    schedule: Schedule,
    noise: Array,
    context: Array,
    guidance_scale: Array,
    interceptor: Interceptor,
) -> tuple[Array, Taps]:
    """Samples latents from noise.

    Compiled once for each scheduler, number of steps, shape and kind of interceptor; every number is traced.

    Args:
      unet: the model.
      schedule: timesteps and coefficients, from `make_schedule`.
      noise: [batch, height, width, channels], of unit variance.
      context: text embeddings [2 · batch, tokens, channels], negative prompts first, for classifier-free guidance;
        or [batch, tokens, channels], for the conditional prediction alone.
      guidance_scale: [] or [batch].
      interceptor: its per-row arrays have as many rows as context.

    Returns:
      Latents float32 [batch, height, width, channels], before the decoder, and the taps of the conditional rows,
      `{site: [calls, batch, ...]}`.
    """
    batch = noise.shape[0]
    guided = context.shape[0] == 2 * batch
    text = unet.text_keys_values(context)  # no step changes them

    def step(carry, row):  # type: ignore[no-untyped-def]
        latents, memory = carry
        model_input = latents * row.input_scale
        if guided:
            model_input = jnp.concatenate([model_input, model_input])
        prediction, taps = unet(model_input, row.timestep, text, interceptor)
        prediction = prediction.astype(jnp.float32)
        if guided:
            prediction = guide(prediction, guidance_scale)
        carry = schedule.step(row, memory, prediction, latents)
        return carry, jax.tree.map(lambda tap: tap[-batch:], taps)

    latents = noise.astype(jnp.float32) * schedule.init_noise_sigma
    (latents, _), taps = jax.lax.scan(step, (latents, schedule.init(latents)), schedule.rows())
    return latents, taps
