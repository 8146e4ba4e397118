"""What a detector costs in UNet forwards, counted from the compiled program's shapes."""

from functools import cache

import jax
import jax.numpy as jnp

from memattn_jax.detectors.registry import DETECTORS
from memattn_jax.detectors.scorer import Scorer, score_first_step
from memattn_jax.models.unet import UNet2DConditionModel


def flops(traced: jax.stages.Traced) -> float:
    """Of one run; counted as for an accelerator, whose attention has no loop: XLA counts a loop's body once."""
    cost = traced.lower(lowering_platforms=("cuda",)).cost_analysis()
    return float(cost["flops"])


@cache
def forward_flops(unet: UNet2DConditionModel, rows: int, height: int, width: int, tokens: int) -> float:
    """Of one UNet forward on this many rows of latents [height, width]."""
    latents = jax.ShapeDtypeStruct((rows, height, width, unet.config.in_channels), jnp.float32)
    context = jax.ShapeDtypeStruct((rows, tokens, unet.config.cross_attention_dim), jnp.float32)
    timestep = jax.ShapeDtypeStruct((), jnp.float32)
    return flops(jax.jit(lambda unet, *inputs: unet(*inputs)[0]).trace(unet, latents, timestep, context))


def forwards_per_prompt(scorer: Scorer, batch: int) -> float:
    """UNet forwards that the scorer spends on a prompt, over all its probes.

    What is computed once for shared probes, the empty prompt's part, counts with no prompt. A sampling run is two
    forwards a step, and its reductions are nothing beside them.
    """
    shape = scorer.latents_shape
    per_prompt = 0.0
    if scorer.first_step or scorer.attribute:
        rows = batch * scorer.probes
        unit = forward_flops(scorer.sd.unet, rows, *shape[:2], scorer.tokens) / rows
        context = jax.ShapeDtypeStruct((batch, scorer.tokens, scorer.sd.unet.config.cross_attention_dim), jnp.float32)
        per_prompt += flops(score_first_step.trace(*scorer.first_step_arguments(context))) / batch / unit
    if scorer.trajectory:
        per_prompt += 2.0 * scorer.steps * scorer.probes
    return per_prompt


__all__ = ["DETECTORS", "forwards_per_prompt"]
