"""The denoising loop: one compiled program, one `lax.scan` over the scheduler's calls, taps kept per call."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from memattn_jax.interceptors import Interceptor
from memattn_jax.keys import fixed_draws, seed_key
from memattn_jax.models.attention import Taps
from memattn_jax.models.unet import UNet2DConditionModel
from memattn_jax.schedulers import Row, Schedule


def unit_noise(seeds: Array, shape: tuple[int, ...]) -> Array:
    """Starting noise of each row from its seed alone: uint32 [batch] to float32 [batch, *shape].

    Row i is drawn from `fold_in(key(0), seeds[i])`, so it does not depend on the rows beside it, nor on what the host
    program sets; see `memattn_jax.keys`.
    """
    with fixed_draws():
        keys = jax.vmap(lambda seed: jax.random.fold_in(seed_key(0), seed))(seeds)
        return jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(keys)


def guide(prediction: Array, guidance_scale: Array) -> Array:
    """Classifier-free guidance: float32 [2 · batch, ...], unconditional rows first, to [batch, ...].

    Source: Ho & Salimans, arXiv 2207.12598.
    """
    unconditional, conditional = jnp.split(prediction, 2)
    scale = jnp.broadcast_to(guidance_scale, conditional.shape[:1]).reshape(-1, 1, 1, 1)
    return unconditional + scale * (conditional - unconditional)


class Call(NamedTuple):
    """What an observer sees of one call of the UNet: float32 [batch, h, w, channels], and taps.

    Attributes:
      row: timestep and coefficients.
      latents: before the call.
      moved: the latents after it.
      conditional: the UNet's output for the prompts.
      unconditional: for the negative prompts; the conditional output where there is no guidance.
      taps: of the conditional rows, {site: [batch, ...]}.
    """

    row: Row
    latents: Array
    moved: Array
    conditional: Array
    unconditional: Array
    taps: Taps


Kept = Any
Last = Any
Observer = Callable[[Call], tuple[Kept, Last]]  # what to keep of every call, and what of the last alone


def observe(
    unet: UNet2DConditionModel,
    schedule: Schedule,
    noise: Array,
    context: Array,
    guidance_scale: Array,
    interceptor: Interceptor,
    observer: Observer,
) -> tuple[Array, Kept, Last]:
    """Samples latents from noise, in one `lax.scan`, and returns what the observer keeps on the way.

    Args:
      unet: the model.
      schedule: timesteps and coefficients, from `make_schedule`.
      noise: [batch, height, width, channels], of unit variance.
      context: text embeddings [2 · batch, tokens, channels], negative prompts first, for classifier-free guidance;
        or [batch, tokens, channels], for the conditional prediction alone.
      guidance_scale: [] or [batch].
      interceptor: its per-row arrays have as many rows as context.
      observer: see `Observer`.

    Returns:
      Latents float32 [batch, height, width, channels], before the decoder; what was kept of every call, with a
      leading axis [calls]; what was kept of the last.
    """
    batch = noise.shape[0]
    guided = context.shape[0] == 2 * batch
    text = unet.text_keys_values(context)  # no step changes them

    @jax.jit  # so that what the observer keeps is known without tracing the UNet twice
    def call(carry: Any, row: Row) -> tuple[Any, Kept, Last]:
        latents, memory = carry
        model_input = latents * row.input_scale
        if guided:
            model_input = jnp.concatenate([model_input, model_input])
        output, taps = unet(model_input, row.timestep, text, interceptor)
        output = output.astype(jnp.float32)
        guidance = guide(output, guidance_scale) if guided else output
        moved, memory = schedule.step(row, memory, guidance, latents)
        taps = jax.tree.map(lambda tap: tap[-batch:], taps)
        kept, last = observer(Call(row, latents, moved, output[-batch:], output[:batch], taps))
        return (moved, memory), kept, last

    def step(carry: Any, row: Row) -> tuple[Any, Any]:
        carry, kept, last = call(carry[0], row)
        return (carry, last), kept

    latents = noise.astype(jnp.float32) * schedule.init_noise_sigma
    start = (latents, schedule.init(latents))
    first = jax.tree.map(lambda x: x[0], schedule.rows())
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(lambda: call(start, first)[2]))
    ((latents, _), last), kept = jax.lax.scan(step, (start, nothing), schedule.rows())
    return latents, kept, last


@jax.jit
def denoise(
    unet: UNet2DConditionModel,
    schedule: Schedule,
    noise: Array,
    context: Array,
    guidance_scale: Array,
    interceptor: Interceptor,
) -> tuple[Array, Taps]:
    """Samples latents from noise; arguments as in `observe`.

    Compiled once for each scheduler, number of steps, shape and kind of interceptor; every number is traced.

    Returns:
      Latents float32 [batch, height, width, channels], before the decoder, and the taps of the conditional rows,
      `{site: [calls, batch, ...]}`.
    """
    latents, taps, _ = observe(
        unet, schedule, noise, context, guidance_scale, interceptor, lambda call: (call.taps, ())
    )
    return latents, taps
