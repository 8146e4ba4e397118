"""Whether a mitigated model still returns a training image when its text embedding is optimised for that.

DoRI (Kowalczuk et al., ICML 2026, arXiv 2507.16880): from the prompt's embedding y, at each step

    y ← Adam's step on E ‖ε − f(√ᾱ x₀ + √(1 − ᾱ) ε, t, y)‖²        t uniform, ε ~ N(0, I), some draws of both

through the mitigated model, x₀ the training image's latents. Then the model is sampled with y, mitigated. An image that
was never trained on is the control: if it can be returned as well, the test says nothing. Read in notes on the paper.

Prompts are optimised one after the other, each with the same draws, so that what is found for one depends on no other.

Where a mitigation changes neither weights nor attention, y is found on the plain model, and where it changes texts, y
passes it by: whoever has the weights need not run it at all.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from memattn_jax.copies.correlation import REPRODUCED, normalized_correlation
from memattn_jax.diffusion.mitigation import Mitigation, Step, overrides
from memattn_jax.diffusion.model import Model
from memattn_jax.diffusion.noise import fold, row_keys
from memattn_jax.diffusion.rows import read_rows
from memattn_jax.diffusion.run import plan_run, sample
from memattn_jax.diffusion.sampling import start_run
from memattn_jax.diffusion.settings import Settings
from memattn_jax.errors import InputError
from memattn_jax.evaluation.shares import share_interval
from memattn_jax.interceptors import Interceptor, for_rows
from memattn_jax.keys import draw_rows, fixed_draws
from memattn_jax.mitigations.descent import Descent, adam
from memattn_jax.pytree import as_arrays, as_pytree
from memattn_jax.schedulers import Row, SchedulerConfig, alphas_cumprod, make_schedule
from memattn_jax.sharding.placement import spread, take_rows

TEXT_HOOKS = ("prompts", "tokens", "alternatives")
TARGETS = ("epsilon", "v_prediction")  # what a UNet may predict


class Attack(NamedTuple):
    """How embeddings are optimised; the paper's numbers.

    Attributes:
      steps: updates.
      rate: step size.
      draws: timesteps and noises an update.
      seed: of the draws.
    """

    steps: int = 50
    rate: float = 0.1
    draws: int = 8
    seed: int = 0


class Target(NamedTuple):
    """What the embeddings of a prompt are optimised on.

    Attributes:
      unet: with the mitigation's weights.
      mitigation: whose edits of the attention apply.
      memory: of the mitigation, for the prompt.
      latents: of the image, float32 [1, h, w, channels].
      context: embeddings to start from, [1, tokens, channels].
      lengths: int32 [1].
      signal: ᾱ of each training timestep, float32 [timesteps].
    """

    unet: Any
    mitigation: Any
    memory: Any
    latents: Array
    context: Array
    lengths: Array
    signal: Array


def can_apply(mitigation: Mitigation) -> bool:
    """Whether a mitigation applies where embeddings are given in place of prompts."""
    return not any(overrides(mitigation, hook) for hook in TEXT_HOOKS)


def optimise_embeddings(
    model: Model, prompts: list[str], images: np.ndarray, mitigation: Mitigation, attack: Attack, run: dict[str, Any]
) -> np.ndarray:
    """Embeddings that return images, as far as they can, [batch, tokens, channels].

    Args:
      model: the networks.
      prompts: texts to start from.
      images: uint8 [batch, height, width, 3], one for each.
      mitigation: fitted; one that `can_apply`.
      attack: how.
      run: settings of the runs to come, such as steps.
    """
    settings = Settings(mitigation=mitigation, taps=None, seeds=attack.seed, **run)
    schedule = make_schedule(model.scheduler_config, settings.scheduler, settings.steps)
    config = SchedulerConfig.from_json(model.scheduler_config, "ddim")
    if config.prediction_type not in TARGETS:
        raise InputError(f"the adversarial test has no loss for prediction_type {config.prediction_type!r}")
    every, signal = as_arrays(as_pytree(mitigation)), jnp.asarray(alphas_cumprod(config), jnp.float32)
    velocity, rate = jnp.float32(config.prediction_type == "v_prediction"), jnp.float32(attack.rate)
    keys = spread(row_keys(jnp.uint32(attack.seed) + jnp.arange(attack.draws, dtype=jnp.uint32)), model.mesh)
    found = []
    for number, prompt in enumerate(prompts):  # one at a time: all at once would take the memory of all derivatives
        own = take_rows(every, len(prompts), np.array([number]))
        rows = read_rows(model, [prompt], settings, len(schedule.timesteps))
        plan = plan_run(model, rows, schedule, settings, own)[0]
        latents = encode(model.vae, jnp.asarray(images[number : number + 1]))
        memory = start_run(plan)[2].guidance
        target = Target(plan.unet, own, memory, latents, plan.context, plan.lengths, signal)
        found.append(np.asarray(descend(target, keys, velocity, rate, attack.steps)))
    return np.concatenate(found)


@jax.jit
def encode(vae: Any, images: Array) -> Array:
    """Images uint8 [batch, height, width, 3] to the means of their latents, float32."""
    return vae.encode(images.astype(jnp.float32) / 127.5 - 1).mean.astype(jnp.float32) * vae.config.scaling_factor


@partial(jax.jit, static_argnames="steps")
def descend(target: Target, keys: Array, velocity: Array, rate: Array, steps: int) -> Array:
    """The loop; see the module. `keys` [draws] are those of each draw."""
    draws, timesteps = len(keys), len(target.signal)
    latents, lengths = (for_rows(x, draws) for x in (target.latents, target.lengths))

    def loss(context: Array, number: Array) -> Array:
        own = fold(keys, number)
        with fixed_draws():
            times = jax.vmap(lambda key: jax.random.randint(key, (), 0, timesteps, jnp.int32))(fold(own, 0))
        noise = draw_rows(own, target.latents.shape[1:])
        signal = target.signal[times].reshape(-1, 1, 1, 1)
        noisy = jnp.sqrt(signal) * latents + jnp.sqrt(1 - signal) * noise
        wanted = jnp.where(velocity > 0, jnp.sqrt(signal) * noise - jnp.sqrt(1 - signal) * latents, noise)
        interceptor = Interceptor(edits(), lengths=lengths)
        output, _ = target.unet(noisy, times.astype(jnp.float32), for_rows(context, draws), interceptor)
        return ((output.astype(jnp.float32) - wanted) ** 2).mean()

    def edits() -> tuple:
        row = Row(jnp.float32(0), jnp.float32(1), {})
        nobody = (target.latents, lengths, target.context, target.context, keys[:1], jnp.ones(1, bool))
        step = Step(jnp.int32(0), 1, row, *nobody, lambda context: target.latents, target.memory)
        return tuple(target.mitigation.edits(step))

    def update(state: Descent, number: Array) -> tuple[Descent, None]:
        slope = jax.grad(loss)(state.values, number)
        moved, mean, square = adam(state, slope, rate, 0.0)
        return Descent(moved, mean, square, state.done, state.number + 1), None

    context = target.context.astype(jnp.float32)
    zeros = jnp.zeros_like(context)
    start = Descent(context, zeros, zeros, jnp.zeros(1, bool), jnp.int32(0))
    return jax.lax.scan(update, start, jnp.arange(steps))[0].values


def find_embeddings(
    model: Model, prompts: list[str], images: np.ndarray, mitigation: Mitigation, attack: Attack, run: dict[str, Any]
) -> np.ndarray:
    """Embeddings for the images and for the same images mirrored, [2, batch, tokens, channels].

    Arguments as in `optimise_embeddings`, with any mitigation: one that changes neither weights nor attention, or that
    embeddings pass by, leaves them as on the plain model.
    """
    used = mitigation if optimised_through(mitigation) else Mitigation()
    both = [optimise_embeddings(model, prompts, targets, used, attack, run) for targets in (images, mirrored(images))]
    return np.stack(both)


def optimised_through(mitigation: Mitigation) -> bool:
    """Whether embeddings are optimised through a mitigation: it changes weights or attention, and applies to them."""
    return can_apply(mitigation) and any(overrides(mitigation, hook) for hook in ("weights", "edits"))


def mirrored(images: np.ndarray) -> np.ndarray:
    """Left for right, [batch, height, width, 3]."""
    return images[:, :, ::-1]


def retriggered(
    model: Model,
    prompts: list[str],
    images: np.ndarray,
    mitigation: Mitigation,
    attack: Attack,
    run: dict[str, Any],
    plain: np.ndarray | None = None,
    batch: int = 8,
) -> dict[str, Any]:
    """The share of training images that optimised embeddings return, and of the same images mirrored, the control.

    Samples that are not finite are in no share, and counted; a share of none is None.

    Arguments as in `optimise_embeddings`; each prompt is sampled once, with the attack's seed. `plain` is what
    `find_embeddings` returns without a mitigation, where that is known: most mitigations need no other. `batch` images
    are sampled at once.
    """
    if plain is None or optimised_through(mitigation):
        plain = find_embeddings(model, prompts, images, mitigation, attack, run)
    applies = can_apply(mitigation)
    used = mitigation if applies else Mitigation()
    entry: dict[str, Any] = {"prompts": len(prompts), "steps": attack.steps, "bypassed": not applies}
    for name, targets, embeddings in zip(("retriggered", "control"), (images, mirrored(images)), plain, strict=True):
        settings = Settings(seeds=attack.seed, taps=None, **run)
        made = sample_embeddings(model, prompts, embeddings, used, settings, batch)
        near = [
            normalized_correlation(own[None], target[None])[0, 0]
            for (own, finite), target in zip(made, targets, strict=True)
            if finite
        ]
        share = float((np.array(near) >= REPRODUCED).mean()) if near else None
        low, high = (0.0, 1.0) if share is None else share_interval(share, len(near))
        entry |= {name: share, f"{name}_low": low, f"{name}_high": high}
        entry["not_finite"] = entry.get("not_finite", 0) + len(prompts) - len(near)
    return entry


def sample_embeddings(
    model: Model,
    prompts: Sequence[str],
    embeddings: np.ndarray,
    mitigation: Mitigation,
    settings: Settings,
    batch: int,
) -> list[tuple[np.ndarray, bool]]:
    """The image of each prompt, and whether it is finite, sampled with these embeddings in batches of one size."""
    every, size = as_arrays(as_pytree(mitigation)), min(batch, len(prompts))
    made: list[tuple[np.ndarray, bool]] = []
    for first in range(0, len(prompts), size):
        rows = np.minimum(np.arange(first, first + size), len(prompts) - 1)  # the last one again fills the last batch
        own = replace(settings, embeddings=embeddings[rows], mitigation=take_rows(every, len(prompts), rows))
        part = sample(model, [prompts[row] for row in rows], own)
        made += zip(part.images, np.asarray(part.finite).tolist(), strict=True)
    return made[: len(prompts)]
