"""Which scores of a fine-tuned model tell duplicated pairs from clean ones."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from demo_evaluation.separation import auroc
from demo_evaluation.tables import percent, table
from memattn_jax.detectors.noise_norm import norm
from memattn_jax.entropy import entropy_over_heads, mean_over_sites, token_entropy
from memattn_jax.interceptors import Interceptor, TokenMeans
from memattn_jax.keys import seed_key
from memattn_jax.models.unet import UNet2DConditionModel
from memattn_jax.pipeline import StableDiffusion
from memattn_jax.schedulers import SchedulerConfig, alphas_cumprod
from memattn_jax.training.objective import add_noise, squared_error
from memattn_jax.training.settings import TrainSettings

TIMESTEPS = (100, 300, 500, 700, 900)
NOISES = 4  # of each pair
QUANTILES = (TrainSettings.gate_quantile, 0.7)  # of clean scores

Pairs = Sequence[tuple[np.ndarray, str]]
Scores = dict[str, np.ndarray]  # each [timesteps, pairs, noises]


class Diagnosis(NamedTuple):
    """A score over the duplicated and the clean pairs, of one model."""

    duplicated: np.ndarray  # [timesteps, pairs, noises]
    clean: np.ndarray

    def auroc(self) -> float:
        """Within a timestep, where the gate compares; the mean over timesteps."""
        return float(np.mean([auroc(*scores) for scores in zip(*self, strict=True)]))

    def caught(self, quantile: float) -> float:
        """Share of duplicated rows above this quantile of clean ones."""
        limit = np.quantile(self.clean, quantile, axis=(1, 2), keepdims=True)
        return float((self.duplicated > limit).mean())

    def spread(self) -> tuple[float, float]:
        """Standard deviation of clean scores between captions, and of one caption's over noise."""
        return float(self.clean.mean(axis=2).std(axis=1).mean()), float(self.clean.std(axis=2).mean())


@jax.jit
def score_rows(
    unet: UNet2DConditionModel, latents: Array, noise: Array, timestep: Array, signal: Array, texts: tuple[Array, Array]
) -> dict[str, Array]:
    """Scores of pairs at one timestep, float32 [batch] each; `texts`: the captions' and the empty prompt's states."""
    context, empty = texts
    noisy = add_noise(latents, noise, jnp.broadcast_to(signal[timestep], len(latents)))
    prediction, taps = unet(noisy, timestep, context, Interceptor(taps={"tokens": TokenMeans()}))
    unconditional = unet(noisy, timestep, jnp.broadcast_to(empty, context.shape))[0]
    by_site = {site: entropy_over_heads(tap) for site, tap in taps["tokens"].items()}
    return {
        "negative loss": -squared_error(prediction, noise),
        "noise_norm": norm(prediction - unconditional),
        "entropy": token_entropy(mean_over_sites(taps["tokens"])),
        **by_site,
    }


@jax.jit
def encode(vae: Any, pictures: np.ndarray) -> Array:
    """Mean latents of pictures between −1 and 1."""
    return vae.encode(pictures).mean * vae.config.scaling_factor


@jax.jit
def embed(text_encoder: Any, ids: np.ndarray) -> Array:
    """Embeddings of token ids."""
    return text_encoder(ids)


def score_pairs(sd: StableDiffusion, pairs: Pairs) -> Scores:
    """Every score of every pair at every timestep, with noise that depends on the pairs' number alone."""
    signal = jnp.asarray(alphas_cumprod(SchedulerConfig.from_json(sd.scheduler_config, "ddim")))
    empty = embed(sd.text_encoder, sd.tokenizer([""]).input_ids)
    pictures, captions = zip(*pairs, strict=True)
    latents = encode(sd.vae, np.stack(pictures) / np.float32(127.5) - 1)
    texts = embed(sd.text_encoder, sd.tokenizer(list(captions)).input_ids), empty
    keys = jax.random.split(seed_key(0), NOISES)
    scored = [
        score_rows(sd.unet, latents, jax.random.normal(key, latents.shape), jnp.int32(timestep), signal, texts)
        for timestep in TIMESTEPS
        for key in keys
    ]
    by_name = jax.tree.map(lambda *parts: np.stack(parts, axis=-1), *jax.device_get(scored))
    # [pairs, timesteps · noises] -> [timesteps, pairs, noises]
    split = (len(pairs), len(TIMESTEPS), NOISES)
    return {name: scores.reshape(split).swapaxes(0, 1) for name, scores in by_name.items()}


def diagnose(before: StableDiffusion, after: StableDiffusion, duplicated: Pairs, clean: Pairs) -> str:
    """A table of all scores, before and after fine-tuning, and of how far each pair's own score has moved."""
    (old_duplicated, new_duplicated), (old_clean, new_clean) = (
        [score_pairs(sd, pairs) for sd in (before, after)] for pairs in (duplicated, clean)
    )
    rows = []
    for name in ("negative loss", "noise_norm", "entropy", *before.unet.sites):
        old, new = Diagnosis(old_duplicated[name], old_clean[name]), Diagnosis(new_duplicated[name], new_clean[name])
        moved = Diagnosis(new.duplicated - old.duplicated, new.clean - old.clean)
        between, within = new.spread()
        rows.append(
            [
                name.split(".transformer")[0],
                old.auroc(),
                new.auroc(),
                *(percent(new.caught(quantile)) for quantile in QUANTILES),
                between,
                within,
                moved.auroc(),
            ]
        )
    header = [
        "score",
        "AUROC before",
        "after",
        *(f"duplicated rows above the clean {quantile:g} quantile" for quantile in QUANTILES),
        "deviation between clean captions",
        "over noise",
        "AUROC of each row's change",
    ]
    return table(header, rows)
