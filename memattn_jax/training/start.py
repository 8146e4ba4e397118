"""The initial state of a run from a checkpoint and settings, and the checkpoint from its last state."""

import dataclasses
from collections.abc import Iterable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from memattn_jax.errors import InputError
from memattn_jax.pipeline import StableDiffusion
from memattn_jax.schedulers import SchedulerConfig, alphas_cumprod
from memattn_jax.sharding.placement import spread
from memattn_jax.training.gate import Gate, LossAverage, Thresholds, Window, fit_thresholds, timestep_bins
from memattn_jax.training.objective import check_target, row_keys
from memattn_jax.training.settings import TrainSettings
from memattn_jax.training.step import Batch, Setup, TrainState, draw, forward, is_empty

Network = TypeVar("Network", bound=nnx.Module)


def start(sd: StableDiffusion, settings: TrainSettings, gate: Gate | None = None) -> tuple[TrainState, Setup]:
    """The state before the first update, and the constants of the run.

    Neither `sd` nor `gate` is changed; the state holds copies, which training may donate.

    Args:
      sd: the checkpoint to start from, whose trained parameters are float32; `settings.dtype` is that of the
        computation.
      settings: of the run.
      gate: fitted thresholds; None uses running thresholds where the settings name a gate.

    Raises:
      InputError: a setting out of range, layers that the model lacks, a prediction type without an objective, or
        parameters to train that are not float32.
    """
    setup, params = prepare(sd, settings)
    params = jax.tree.map(jnp.copy, params)
    if settings.gate != "none" and gate is None:
        gate = running_gate(settings)
    gate = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), gate)
    ema = jax.tree.map(jnp.copy, params) if settings.ema_decay else None
    return TrainState(jnp.int32(0), params, ema, setup.optimizer.init(params), gate), setup


def running_gate(settings: TrainSettings) -> Gate:
    """The gate of a run without fitted thresholds, before its first step."""
    if settings.gate == "loss":
        return LossAverage.empty(settings.gate_bins, settings.gate_margin)
    if settings.gate == "random":  # of uniform scores, the quantile is known
        return Thresholds(jnp.full(settings.gate_bins, settings.gate_quantile, jnp.float32))
    return Window.empty(settings.gate_bins, settings.gate_window, settings.gate_quantile)


def prepare(sd: StableDiffusion, settings: TrainSettings) -> tuple[Setup, dict[str, nnx.State]]:
    """The constants of a run, and the parameters that it trains, which are those of `sd`, not copies.

    Raises:
      InputError: see `start`.
    """
    settings.check()
    scheduler = SchedulerConfig.from_json(sd.scheduler_config, "ddim")
    check_target(scheduler.prediction_type)
    sites = tuple(site for site in sd.unet.sites if site.startswith(settings.gate_sites))
    if not sites:
        raise InputError(
            f"no cross-attention layer {settings.gate_sites!r}…; this model has {', '.join(sd.unet.sites)}"
        )
    unet = nnx.merge(*nnx.split(sd.unet))  # another module with the same arrays: the caller's keeps its `remat`
    unet.remat = settings.remat
    networks: dict[str, nnx.Module] = {"unet": unet}
    frozen: dict[str, nnx.Module] = {}
    (networks if settings.train_text_encoder else frozen)["text_encoder"] = sd.text_encoder
    split = {name: nnx.split(network) for name, network in networks.items()}
    params = {name: state for name, (_, state) in split.items()}
    if others := {str(leaf.dtype) for leaf in jax.tree.leaves(params)} - {"float32"}:
        raise InputError(
            f'the model to train holds {", ".join(sorted(others))} parameters; load it with dtype="float32", '
            "and set the dtype of the computation in the settings"
        )
    setup = Setup(
        vae=in_dtype(sd.vae, settings.dtype),
        frozen={name: in_dtype(network, settings.dtype) for name, network in frozen.items()},
        empty_ids=jnp.asarray(sd.tokenizer([""]).input_ids[0]),
        signal=jnp.asarray(alphas_cumprod(scheduler), jnp.float32),
        seed=jnp.uint32(settings.seed),
        dropout=jnp.float32(settings.dropout),
        high_noise=jnp.float32(settings.high_noise),
        ema_decay=jnp.float32(settings.ema_decay),
        graphs=tuple((name, graph) for name, (graph, _) in split.items()),
        optimizer=settings.optimizer(),
        prediction_type=scheduler.prediction_type,
        accumulation=settings.accumulation,
        score="entropy" if settings.gate == "none" else settings.gate,  # type: ignore[arg-type]
        sites=sites,
        dtype=settings.dtype,
    )
    return setup, params


def in_dtype(network: Network, dtype: str) -> Network:
    """The network with its parameters cast to a dtype; arrays of that dtype are not copied."""
    return jax.tree.map(lambda leaf: leaf if leaf.dtype == dtype else leaf.astype(dtype), network)


@jax.jit
def score_batch(setup: Setup, params: Any, batch: Batch, step: Array) -> tuple[Array, Array]:
    """Timesteps and gate scores of a batch without dropped captions; draws depend on (seed, step, row).

    Empty captions are never gated: their score is NaN, which `fit_thresholds` ignores.
    """
    scale = setup.vae.config.scale
    shape = (*(size // scale for size in batch.pictures.shape[1:3]), setup.vae.config.latent_channels)
    keys = row_keys(setup.seed, step, len(batch.pictures))
    draws = draw(keys, shape, len(setup.signal), dropout=0.0, high_noise=0.0)
    scores = forward(setup, params, batch, draws, gated=True)[1]
    return draws.timesteps, jnp.where(is_empty(setup, batch), jnp.nan, scores)


def fit_gate(sd: StableDiffusion, settings: TrainSettings, reference: Iterable[dict[str, np.ndarray]]) -> Thresholds:
    """γ(t) from held-out clean pairs, scored by the model that training starts from.

    Args:
      sd: the checkpoint.
      settings: of the run.
      reference: batches of "pictures" and "input_ids"; repeats of a pair are scored at other timesteps and noise.
    """
    setup, params = prepare(sd, settings)
    scored = []
    for step, batch in enumerate(reference):
        rows = spread(Batch(batch["pictures"], batch["input_ids"]), sd.mesh)
        # fetched one by one: collectives of several programs at once can wait for each other on CPU devices
        scored.append(jax.device_get(score_batch(setup, params, rows, jnp.int32(step))))
    timesteps, scores = (jnp.concatenate(parts) for parts in zip(*scored, strict=True))
    bins = timestep_bins(timesteps, len(setup.signal), settings.gate_bins)
    return fit_thresholds(bins, scores, settings.gate_bins, settings.gate_quantile)


def trained(sd: StableDiffusion, state: TrainState, setup: Setup) -> StableDiffusion:
    """The checkpoint with the trained networks in float32, those of the moving average if there is one.

    It holds copies, which outlive the state that the next step donates.
    """
    params = jax.tree.map(jnp.copy, state.params if state.ema is None else state.ema)
    networks = {name: nnx.merge(graph, params[name]) for name, graph in setup.graphs}
    networks["unet"].remat = sd.unet.remat
    return dataclasses.replace(sd, **networks)
