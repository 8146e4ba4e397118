"""A checkpoint and settings to the first state of a run, and the state back to a checkpoint."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from memattn_jax.errors import InputError
from memattn_jax.parallel import spread
from memattn_jax.pipeline import StableDiffusion
from memattn_jax.schedulers import SchedulerConfig, alphas_cumprod
from memattn_jax.training.gate import Gate, Thresholds, Window, fit_thresholds, timestep_bins
from memattn_jax.training.objective import row_keys
from memattn_jax.training.settings import TrainSettings
from memattn_jax.training.step import Batch, Setup, TrainState, draw, forward


def start(sd: StableDiffusion, settings: TrainSettings, gate: Gate | None = None) -> tuple[TrainState, Setup]:
    """The state before the first update, and what stays the same.

    Args:
      sd: the checkpoint to start from, float32.
      settings: the run.
      gate: fitted thresholds; None with a gate in the settings runs on a window of the scores seen last.

    Raises:
      InputError: a setting out of range.
    """
    settings.check()
    sites = tuple(site for site in sd.unet.sites if site.startswith(settings.gate_sites))
    if not sites:
        raise InputError(
            f"no cross-attention layer {settings.gate_sites!r}…; this model has {', '.join(sd.unet.sites)}"
        )
    sd.unet.remat = settings.remat
    networks: dict[str, nnx.Module] = {"unet": sd.unet}
    frozen: dict[str, nnx.Module] = {}
    (networks if settings.train_text_encoder else frozen)["text_encoder"] = sd.text_encoder
    split = {name: nnx.split(network) for name, network in networks.items()}
    params = {name: jax.tree.map(jnp.copy, state) for name, (_, state) in split.items()}
    scheduler = SchedulerConfig.from_json(sd.scheduler_config, "ddim")
    optimizer = settings.optimizer()
    if settings.gate != "none" and gate is None:
        gate = Window.empty(settings.gate_bins, settings.gate_window, settings.gate_quantile)
    setup = Setup(
        vae=sd.vae,
        frozen=frozen,
        empty_ids=jnp.asarray(sd.tokenizer([""]).input_ids[0]),
        signal=jnp.asarray(alphas_cumprod(scheduler)),
        seed=jnp.uint32(settings.seed),
        dropout=jnp.float32(settings.dropout),
        high_noise=jnp.float32(settings.high_noise),
        ema_decay=jnp.float32(settings.ema_decay),
        graphs=tuple((name, graph) for name, (graph, _) in split.items()),
        optimizer=optimizer,
        prediction_type=scheduler.prediction_type,
        accumulation=settings.accumulation,
        score="noise_norm" if settings.gate == "noise_norm" else "entropy",
        sites=sites,
        dtype=settings.dtype,
    )
    ema = jax.tree.map(jnp.copy, params) if settings.ema_decay else None
    return TrainState(jnp.int32(0), params, ema, optimizer.init(params), gate), setup


@jax.jit
def score_batch(setup: Setup, params: Any, batch: Batch, step: Array) -> tuple[Array, Array]:
    """Timesteps and gate scores of a batch with no caption dropped; draws from (seed, step, row)."""
    scale = setup.vae.config.scale
    shape = (*(size // scale for size in batch.pictures.shape[1:3]), setup.vae.config.latent_channels)
    keys = row_keys(setup.seed, step, len(batch.pictures))
    draws = draw(keys, shape, len(setup.signal), dropout=0.0, high_noise=0.0)
    return draws.timesteps, forward(setup, params, batch, draws, gated=True)[1]


def fit_gate(sd: StableDiffusion, settings: TrainSettings, reference: Iterable[dict[str, np.ndarray]]) -> Thresholds:
    """γ(t) from held-out clean pairs, scored by the model that training starts from.

    Args:
      sd: the checkpoint.
      settings: the run.
      reference: batches of "pictures" and "input_ids"; repeats of a pair are scored at other timesteps and noise.
    """
    state, setup = start(sd, settings)
    scored = []
    for step, batch in enumerate(reference):
        rows = spread(Batch(batch["pictures"], batch["input_ids"]), sd.mesh)
        # fetched one by one: collectives of several programs at once can wait for each other on CPU devices
        scored.append(jax.device_get(score_batch(setup, state.params, rows, jnp.int32(step))))
    timesteps, scores = (jnp.concatenate(parts) for parts in zip(*scored, strict=True))
    bins = timestep_bins(timesteps, len(setup.signal), settings.gate_bins)
    return fit_thresholds(bins, scores, settings.gate_bins, settings.gate_quantile)


def trained(sd: StableDiffusion, state: TrainState, setup: Setup) -> StableDiffusion:
    """The checkpoint with the trained networks, the moving average's if there is one."""
    params = state.params if state.ema is None else state.ema
    return dataclasses.replace(sd, **{name: nnx.merge(graph, params[name]) for name, graph in setup.graphs})
