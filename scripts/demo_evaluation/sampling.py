"""Samples of a group of prompts, and all that is read off them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from memattn_jax import detectors
from memattn_jax.detectors.noise_norm import norm
from memattn_jax.diffusion.noise import unit_noise
from memattn_jax.entropy import token_entropy
from memattn_jax.mitigations import AttentionMask
from memattn_jax.models.unet import UNet2DConditionModel
from memattn_jax.pipeline import StableDiffusion
from memattn_jax.schedulers import make_schedule


class Observed(NamedTuple):
    """A group's samples; the first two axes are prompts and seeds.

    Attributes:
      images: uint8 [prompts, seeds, height, width, 3].
      entropy: {site: float32 [prompts, seeds, steps]}, in nats.
      metric_d: float32 [prompts, seeds].
      noise_norm: float32 [prompts, seeds], at the first step.
    """

    images: np.ndarray
    entropy: dict[str, Any]
    metric_d: Any
    noise_norm: Any


def kept(path: Path, make: Callable[[], Observed]) -> Observed:
    """What a file holds, which is made and written first where it is missing."""
    if not path.exists():
        seen = make()
        fields = {name: value for name, value in seen._asdict().items() if name != "entropy"}
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial.npz")
        np.savez(partial, **fields, **{f"entropy/{site}": values for site, values in seen.entropy.items()})
        partial.rename(path)
    with np.load(path) as stored:
        entropy = {name.removeprefix("entropy/"): stored[name] for name in stored if name.startswith("entropy/")}
        return Observed(**{name: stored[name] for name in Observed._fields if name != "entropy"}, entropy=entropy)


@jax.jit
def first_noise_norm(
    unet: UNet2DConditionModel, latents: jax.Array, timestep: jax.Array, context: jax.Array, nothing: jax.Array
) -> jax.Array:
    """‖ε(x, c) − ε(x, ∅)‖ of the first step (Wen et al., arXiv 2407.21720), float32 [batch]."""
    return norm(unet(latents, timestep, context)[0] - unet(latents, timestep, nothing)[0])


class Run(NamedTuple):
    """What differs between runs.

    Attributes:
      mitigation: of all rows.
      guidance_scale: of the steps that are guided.
      guided: the share of steps that are, the first ones. Guidance in a part of the steps is that of Kynkäänniemi et
        al. (NeurIPS 2024, arXiv 2404.07724), who leave out the very first steps too.
    """

    mitigation: AttentionMask | None = None
    guidance_scale: float = 7.5
    guided: float = 1.0

    def scales(self, steps: int) -> float | np.ndarray:
        """Guidance of the steps, as a run takes it."""
        if self.guided == 1:
            return self.guidance_scale
        return np.where(np.arange(steps) < round(self.guided * steps), self.guidance_scale, 1.0)[:, None]


def observe(sd: StableDiffusion, prompts: Sequence[str], seeds: int, steps: int, how: Run) -> Observed:
    """Samples every prompt with seeds 0, 1, …; a batch is all prompts with one seed."""
    scales = how.scales(steps)
    schedule = make_schedule(sd.scheduler_config, "ddim", steps)
    context, _ = sd.encode(prompts)
    nothing, _ = sd.encode([""] * len(prompts))
    seen = []
    for seed in range(seeds):
        run = sd.sample(prompts, seeds=seed, steps=steps, mitigation=how.mitigation, guidance_scale=scales)
        noise = unit_noise(jnp.full(len(prompts), seed, jnp.uint32), run.latents.shape[1:])
        first = first_noise_norm(
            sd.unet, noise * schedule.init_noise_sigma, jnp.float32(run.timesteps[0]), context, nothing
        )
        entropy = {site: token_entropy(tokens.mean(axis=2)).T for site, tokens in run.tokens.items()}
        seen.append(Observed(run.images, entropy, detectors.entropy_d(run), first))
    return jax.tree.map(lambda *parts: np.stack(parts, axis=1), *seen)
