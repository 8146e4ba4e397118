"""A sampling run from prompts to `Samples`: what the host does around the compiled loop."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from memattn_jax.checkpoints.tokenizer import Tokens
from memattn_jax.diffusion.mitigation import Mitigation, kind_of, overrides
from memattn_jax.diffusion.model import Model
from memattn_jax.diffusion.noise import row_keys
from memattn_jax.diffusion.rows import Rows, read_rows
from memattn_jax.diffusion.samples import Samples, choose_samples
from memattn_jax.diffusion.sampling import (
    Observer,
    Plan,
    Taps,
    continue_run,
    denoise,
    needs_guidance,
    observe,
    start_run,
)
from memattn_jax.diffusion.settings import Between, Callback, Settings
from memattn_jax.errors import InputError
from memattn_jax.interceptors.taps import MeanMaps, step_weights
from memattn_jax.models.kernels.program import program
from memattn_jax.pytree import as_arrays, as_pytree
from memattn_jax.schedulers import Schedule, make_schedule
from memattn_jax.sharding.placement import replicate, rows_multiple, spread, take_rows
from memattn_jax.text import counted


def sample(model: Model, prompts: Sequence[str] | None, settings: Settings) -> Samples:
    """Generates one image for each prompt, in one compiled program; see `StableDiffusion.sample`."""
    schedule = make_schedule(model.scheduler_config, settings.scheduler, settings.steps)
    rows = read_rows(model, prompts, settings, len(schedule.timesteps))
    batch = len(rows.seeds)
    chosen = settings.mitigation if settings.guard is None else settings.guard.mitigation
    mitigation = as_arrays(as_pytree(Mitigation() if chosen is None else chosen))
    filled = np.minimum(np.arange(rows_multiple(batch, model.mesh)), batch - 1)  # with the last one again
    if len(filled) > batch:
        rows, mitigation = rows.take(filled), take_rows(mitigation, batch, filled)
        if settings.callback is not None:
            settings = replace(settings, callback=without_filling(settings.callback, batch, filled))
    if settings.guard is None:
        samples = run(model, rows, schedule, settings, mitigation)
    else:
        samples = guarded(model, rows, schedule, settings, mitigation)
    samples = samples.first_rows(batch) if len(filled) > batch else samples
    return samples.fetch() if settings.wait else samples


def memory_of(model: Model, prompts: Sequence[str], settings: Settings) -> int | None:
    """Bytes that the compiled loop of such a run needs beside arguments and results; None where it is not known."""
    schedule = make_schedule(model.scheduler_config, settings.scheduler, settings.steps)
    rows = read_rows(model, prompts, settings, len(schedule.timesteps))
    mitigation = as_arrays(as_pytree(settings.mitigation or Mitigation()))
    plan = plan_run(model, rows, schedule, settings, mitigation)[0]
    analysis = denoise.jitted(plan).lower(plan).compile().memory_analysis()
    return None if analysis is None else analysis.temp_size_in_bytes


def observe_run(model: Model, prompts: Sequence[str], settings: Settings, observer: Observer) -> Any:
    """What an observer keeps of every call of a run, with a leading axis [calls], on the host; without taps."""
    schedule = make_schedule(model.scheduler_config, settings.scheduler, settings.steps)
    rows = read_rows(model, prompts, settings, len(schedule.timesteps))
    filled = np.minimum(np.arange(rows_multiple(len(prompts), model.mesh)), len(prompts) - 1)
    plan = plan_run(model, rows.take(filled), schedule, replace(settings, taps=None), Mitigation())[0]
    kept = keep(plan, as_arrays(as_pytree(observer)))
    return jax.tree.map(lambda values: np.asarray(values)[:, : len(prompts)], kept)


@program()
def keep(plan: Plan, observer: Observer) -> Any:
    """What the observer keeps of a run."""
    return observe(plan, observer)[1]


def guarded(model: Model, rows: Rows, schedule: Schedule, settings: Settings, mitigation: Mitigation) -> Samples:
    """Samples with the mitigation on the rows that the guard selects."""
    assert settings.guard is not None
    context, lengths, _ = encode(model, rows)
    noise, counts = spread((rows.noise, jnp.asarray(lengths)), model.mesh)
    scores, active = settings.guard.look(model, noise, context, counts)
    if overrides(mitigation, "weights"):  # all rows of a program share the weights
        changed, plain = (run(model, rows, schedule, settings, each) for each in (mitigation, Mitigation()))
        samples = choose_samples(active, changed, plain)
    else:
        samples = run(model, rows, schedule, settings, mitigation, active)
    return replace(samples, guard_scores=scores, mitigated=active)


def encode(
    model: Model, rows: Rows, mitigation: Mitigation | None = None, active: Array | None = None
) -> tuple[Array, np.ndarray, np.ndarray | None]:
    """Text embeddings [batch, tokens, channels], lengths [batch] and token ids, as a mitigation changes them."""
    if not rows.prompts:
        tokens = rows.embeddings.shape[1]
        return spread(jnp.asarray(rows.embeddings), model.mesh), np.full(len(rows.seeds), tokens, np.int32), None
    tokens = model.tokenizer(rows.prompts)
    if rows.embeddings is not None:
        return spread(jnp.asarray(rows.embeddings), model.mesh), tokens.lengths, tokens.input_ids
    if mitigation is not None and overrides(mitigation, "tokens"):
        new, chosen = mitigation.tokens(tokens, rows.seeds, model.tokenizer.size), chosen_rows(active, len(rows.seeds))
        for part, own in zip(new, tokens, strict=True):
            check_count(mitigation, "tokens", len(part), len(own))
            if np.shape(part) != own.shape:
                raise InputError(f"{kind_of(mitigation).__name__}.tokens returned {np.shape(part)} for {own.shape}")
        ids = np.where(chosen[:, None], new.input_ids, tokens.input_ids).astype(np.int32)
        tokens = Tokens(ids, np.where(chosen, new.lengths, tokens.lengths).astype(np.int32))
    return model.embed(tokens), tokens.lengths, tokens.input_ids


def encode_negative(model: Model, rows: Rows) -> Array:
    """Text embeddings of the negative prompts [batch, tokens, channels], or those that are given."""
    if rows.negative_embeddings is None:
        return model.encode(rows.negative)[0]
    return spread(jnp.asarray(rows.negative_embeddings), model.mesh)


def chosen_rows(active: Array | None, rows: int) -> np.ndarray:
    """The rows that a mitigation changes, bool [rows]; see `Plan.active`."""
    return np.ones(rows, bool) if active is None else np.asarray(active)


def changed_prompts(rows: Rows, mitigation: Mitigation, active: Array | None) -> Rows:
    """The rows with the prompts that a mitigation puts in their place."""
    changes = [what for what in ("prompts", "tokens", "alternatives") if overrides(mitigation, what)]
    if changes and (rows.embeddings is not None or not rows.prompts):
        raise InputError(f"embeddings are given, and the mitigation reads prompts ({changes[0]}); give prompts alone")
    if "prompts" not in changes:
        return rows
    new = tuple(mitigation.prompts(rows.prompts, rows.seeds))
    check_count(mitigation, "prompts", len(new), len(rows.prompts))
    chosen = chosen_rows(active, len(new))
    prompts = tuple(other if take else own for own, other, take in zip(rows.prompts, new, chosen, strict=True))
    return replace(rows, prompts=prompts)


def check_count(mitigation: Mitigation, method: str, given: int, rows: int) -> None:
    """Raises InputError where a method of a mitigation returned something for another number of rows."""
    if given != rows:
        raise InputError(f"{kind_of(mitigation).__name__}.{method} returned {given} for {counted(rows, 'prompt')}")


def encode_alternatives(model: Model, rows: Rows, mitigation: Mitigation) -> tuple[Array, Array] | None:
    """`Plan.alternatives`: a mitigation's other texts, of which rows with fewer repeat their last."""
    if not overrides(mitigation, "alternatives"):
        return None
    texts = [tuple(own) for own in mitigation.alternatives(rows.prompts, rows.seeds)]
    check_count(mitigation, "alternatives", len(texts), len(rows.prompts))
    most = max(1, max(map(len, texts)))
    filled = [(*own, *[own[-1] if own else ""] * (most - len(own))) for own in texts]
    embeddings = model.encode([text for own in filled for text in own])[0]
    there = spread(jnp.asarray([bool(own) for own in texts]), model.mesh)
    return embeddings.reshape(len(texts), most, *embeddings.shape[1:]), there


def plan_run(
    model: Model,
    rows: Rows,
    schedule: Schedule,
    settings: Settings,
    mitigation: Mitigation,
    active: Array | None = None,
) -> tuple[Plan, np.ndarray, np.ndarray | None]:
    """What the compiled loop needs; and lengths [batch] and token ids of the prompts that it attends to."""
    mesh = model.mesh
    changed = changed_prompts(rows, mitigation, active)
    context, lengths, input_ids = encode(model, changed, mitigation, active)
    guided = needs_guidance(rows.scales, mitigation)
    # a mitigation may read them without guidance
    negative = encode_negative(model, rows) if guided or type(mitigation) is not Mitigation else context
    if guided and negative.shape[1:] != context.shape[1:]:
        raise InputError(
            f"embeddings are {context.shape[1:]} a row, and those for guidance {negative.shape[1:]}; "
            "give negative_embeddings of the same shape"
        )
    taps = settings.tap_objects()
    plan = Plan(
        unet=change_weights(mitigation, model.unet) if overrides(mitigation, "weights") else model.unet,
        schedule=replicate(schedule, mesh),
        noise=spread(rows.noise, mesh),
        context=context,
        negative=negative,
        guidance_scale=replicate(jnp.asarray(rows.scales), mesh),
        lengths=spread(jnp.asarray(lengths), mesh),
        keys=spread(row_keys(jnp.asarray(rows.seeds, jnp.uint32)), mesh),
        mitigation=spread(mitigation, mesh),
        active=active,
        alternatives=encode_alternatives(model, rows, mitigation),
        taps=replicate(as_arrays({name: as_pytree(tap) for name, tap in taps.items()}), mesh),
        guided=guided,
    )
    return plan, lengths, input_ids


def run(
    model: Model,
    rows: Rows,
    schedule: Schedule,
    settings: Settings,
    mitigation: Mitigation,
    active: Array | None = None,
) -> Samples:
    """Samples rows, as many as divide among the devices; `active` as in `Plan`."""
    plan, lengths, input_ids = plan_run(model, rows, schedule, settings, mitigation, active)
    latents, tapped = denoise(plan) if settings.callback is None else in_chunks(plan, settings)
    images, finite = model.start_decoding(latents)
    taps = settings.tap_objects()
    return Samples(
        prompts=rows.prompts,
        seeds=rows.seeds,
        images=images,
        latents=latents,
        taps={name: in_order(tapped[name], model.sites) for name in taps},  # jit sorts by name
        input_ids=input_ids,
        lengths=lengths,
        timesteps=np.asarray(schedule.timesteps),
        finite=finite,
        entropy_site=model.site_of_entropy(),
        over_heads=tuple(name for name, tap in taps.items() if isinstance(tap, MeanMaps) and tap.heads == "mean"),
    )


def in_order(tapped: dict[str, Any], sites: tuple[str, ...]) -> dict[str, Any]:
    """Taps by site, in forward order."""
    return {site: tapped[site] for site in sites if site in tapped}


@jax.jit
def change_weights(mitigation: Mitigation, unet: Any) -> Any:
    """The UNet as the mitigation changes it."""
    return mitigation.weights(unet)


def changed_latents(given: Any, latents: Array) -> Array:
    """What a callback returned, float32; raises InputError unless it has the latents' shape."""
    if np.shape(given) != latents.shape:
        raise InputError(f"the callback returned latents {np.shape(given)}, not {latents.shape}")
    return jnp.asarray(given, jnp.float32)


def without_filling(callback: Callback, batch: int, filled: np.ndarray) -> Callback:
    """A callback for a batch that is filled up, of one that knows the batch alone.

    Args:
      callback: see `Settings`.
      batch: rows that were asked for.
      filled: which of them each row is.
    """

    def call(between: Between) -> Array | None:
        own = between.latents[:batch]
        given = callback(between._replace(latents=own))
        return None if given is None else changed_latents(given, own)[filled]

    return call


def in_chunks(plan: Plan, settings: Settings) -> tuple[Array, Taps]:
    """`denoise`, with a callback between chunks of steps."""
    assert settings.callback is not None
    plan, text, state = start_run(plan)
    calls, batch = len(plan.schedule.timesteps), len(plan.noise)
    scales = jnp.broadcast_to(plan.guidance_scale, (calls, batch))
    table, parts = plan.schedule.rows(), []
    for first in range(0, calls, settings.callback_steps):
        chunk = slice(first, first + settings.callback_steps)
        rows = jax.tree.map(lambda x, chunk=chunk: x[chunk], table)
        state, taps = continue_run(plan, text, state, rows, scales[chunk])
        parts.append(taps)
        given = settings.callback(Between(min(chunk.stop, calls), calls, state.latents))
        if given is not None:
            state = state._replace(latents=changed_latents(given, state.latents))
    means = step_weights(plan.taps, calls)

    def joined(name: str) -> Any:
        mean = name in means
        return jax.tree.map(lambda *taps: sum(taps) if mean else jnp.concatenate(taps), *(part[name] for part in parts))

    return state.latents, {name: joined(name) for name in parts[0]}
