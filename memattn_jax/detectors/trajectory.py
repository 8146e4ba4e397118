"""A sampling run as detectors see it: one `lax.scan`, and of every step only small reductions."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from memattn_jax.detectors.noise_norm import norm
from memattn_jax.entropy import mean_over_sites
from memattn_jax.interceptors import Interceptor, TokenMap
from memattn_jax.models.unet import UNet2DConditionModel
from memattn_jax.sampling import Call, observe
from memattn_jax.schedulers import Schedule


class Trajectory(NamedTuple):
    """What is kept of a run, float32.

    Attributes:
      tokens: mean attention per token over pixels, heads and sites, [steps, batch, tokens].
      norms: ‖ε_c − ε_u‖₂, [steps, batch].
      energy: (ε_c − ε_u)² summed over channels, [steps, batch, h, w].
      moves: ‖x_{t−1} − x_t‖₂, [steps, batch].
      ending: attention to the end token at the last step, mean over heads and the finest sites, [batch, h, w].
    """

    tokens: Array
    norms: Array
    energy: Array
    moves: Array
    ending: Array


def follow(
    unet: UNet2DConditionModel,
    schedule: Schedule,
    noise: Array,
    context: Array,
    guidance_scale: Array,
    lengths: Array,
) -> Trajectory:
    """Samples with DDIM and returns what detectors read; under `jit`, what they do not read is not computed.

    Args:
      unet: the model.
      schedule: of DDIM.
      noise: [batch, h, w, channels], of unit variance.
      context: text embeddings [2 · batch, tokens, channels], the empty prompt's first.
      guidance_scale: [] or [batch].
      lengths: int [batch], tokens of each prompt with its begin and end token.
    """
    batch, height, width, _ = noise.shape
    finest = tuple(site for site in unet.sites if site.startswith("down_blocks.0."))
    tap = TokenMap(token=jnp.tile(lengths - 1, 2))  # the end token

    def observer(call: Call):  # type: ignore[no-untyped-def]
        difference = call.row.coefficients["noise_output"] * (call.conditional - call.unconditional)
        attention = {site: call.taps[site]["means"][None] for site in unet.sites}
        maps = [call.taps[site]["map"].mean(axis=1) for site in finest]  # [batch, pixels] each
        return (
            mean_over_sites(attention)[0],
            norm(difference),
            jnp.sum(difference**2, axis=-1),
            norm(call.moved - call.latents),
        ), sum(maps) / max(1, len(maps))

    _, kept, ending = observe(unet, schedule, noise, context, guidance_scale, Interceptor(tap=tap), observer)
    tokens, norms, energy, moves = kept
    return Trajectory(tokens, norms, energy, moves, ending.reshape(batch, height, width))
