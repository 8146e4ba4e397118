"""What an audit costs, said before it begins: forward passes, and the time that they take on this device."""

import time
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from memattn_jax.sharding.placement import rows_multiple, spread

if TYPE_CHECKING:
    from memattn_jax.detectors import Scorer
    from memattn_jax.pipeline import StableDiffusion

PROBED = 3  # calls that are timed


@jax.jit
def forward(unet: Any, latents: jax.Array, timestep: jax.Array, context: jax.Array) -> jax.Array:
    """One UNet forward pass."""
    return unet(latents, timestep, context)[0]


def seconds_of_forward(sd: "StableDiffusion", rows: int) -> float:
    """Seconds of one row's forward pass in a batch of guidance pairs, the quickest of a few calls."""
    rows = 2 * rows_multiple(rows, sd.mesh)
    embedding, _ = sd.encode([""] * rows)
    latents = spread(jnp.zeros((rows, *sd.latent_shape()), embedding.dtype), sd.mesh)
    times = []
    for _ in range(1 + PROBED):
        start = time.perf_counter()
        jax.block_until_ready(forward(sd.unet, latents, jnp.float32(1), embedding))
        times.append(time.perf_counter() - start)
    return min(times[1:]) / rows


def forwards_to_score(scorer: "Scorer") -> float:
    """Forward passes of a prompt at most; a derivative counts as two more."""
    first = (2.0 if scorer.first_step else 0.0) + (3.0 if scorer.attribute else 0.0)
    return scorer.probes * (first + (2.0 * scorer.steps if scorer.trajectory else 0.0))


def table_of(parts: dict[str, float], seconds: float, device: str) -> list[str]:
    """Lines that say what each part costs, in forwards and time."""
    lines = [f"{name}: {count:,.0f} forwards, {duration(count * seconds)}" for name, count in parts.items() if count]
    total = sum(parts.values())
    return [*lines, f"in all {total:,.0f} forwards, {duration(total * seconds)} on this {device}, compiling aside"]


def duration(seconds: float) -> str:
    """A time in the unit that suits it."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"about {seconds / size:.1f} {unit}"
    return f"about {seconds:.0f} seconds"
