"""The cost of a scorer in UNet forward passes, counted from the program's shapes."""

from typing import Any

import jax

from memattn_jax.detectors.programs import score_first_step
from memattn_jax.detectors.scorer import Scorer


def flops(traced: jax.stages.Traced) -> float:
    """Of one run, as lowered for an accelerator, whose attention has no loop: XLA counts a loop's body once."""
    return float(traced.lower(lowering_platforms=("cuda",)).cost_analysis()["flops"])


@jax.jit
def forward(unet: Any, latents: jax.Array, timestep: jax.Array, context: jax.Array) -> jax.Array:
    """One UNet forward pass, the unit of cost."""
    return unet(latents, timestep, context)[0]


def forwards_per_prompt(scorer: Scorer, batch: int = 16) -> float:
    """UNet forward passes per prompt, over all noise samples, in batches of this size.

    What is computed once for shared probes, the empty prompt's part, counts with no prompt. A sampling run is two
    forwards a step; its reductions are nothing beside them.
    """
    probes = scorer.probes_for(range(batch))
    empty, _ = scorer.model.encode([""])
    context = jax.ShapeDtypeStruct((batch, *empty.shape[1:]), empty.dtype)
    total = 0.0
    if scorer.first_step or scorer.attribute:
        rows = jax.ShapeDtypeStruct((batch, *probes.shape[2:]), probes.dtype)
        unit = flops(forward.trace(scorer.model.unet, rows, jax.ShapeDtypeStruct((), "float32"), context)) / batch
        inputs = scorer.inputs(probes, context, jax.ShapeDtypeStruct((batch,), "int32"))
        program = score_first_step.trace(inputs, scorer.first_step, attribute=scorer.attribute)
        total += flops(program) / batch / unit
    if scorer.trajectory:
        total += 2 * scorer.steps * scorer.probes
    return total
