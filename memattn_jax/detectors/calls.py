"""Detection of any number of prompts in one call."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from jax import Array

from memattn_jax.detectors.detection import Detection, concatenate
from memattn_jax.detectors.scorer import Scorer, options_of, score_batches
from memattn_jax.diffusion.model import Model, check_seeds
from memattn_jax.diffusion.settings import as_list
from memattn_jax.errors import InputError, check_name
from memattn_jax.registries import DETECTORS, load


def detect(
    model: Model,
    prompts: Sequence[str],
    detectors: Any,
    *,
    seeds: int | Sequence[int],
    latents: Array | np.ndarray | None,
    batch_size: int,
    settings: Mapping[str, Any],
) -> Detection:
    """Scores prompts; see `StableDiffusion.detect`."""
    prompts = (prompts,) if isinstance(prompts, str) else tuple(prompts)
    if not prompts:
        raise InputError("no prompts; expected at least one")
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; must be at least 1")
    if latents is not None:
        noises = 1 if np.shape(latents)[:1] == (1,) else len(prompts)
        latents = model.check_latents(latents, noises)
        seeds = 0 if noises == 1 else range(noises)  # places in the latents
    scorer = make_scorer(model, detectors, seeds, latents, settings)
    rows = check_seeds(as_list(seeds, len(prompts), "seeds"), scorer.probes)
    size = min(batch_size, len(prompts))
    return concatenate(list(score_batches(scorer, zip(prompts, rows, strict=True), size)))


def make_scorer(
    model: Model, detectors: Any, seeds: int | Sequence[int], latents: Array | None, settings: Mapping[str, Any]
) -> Scorer:
    """A scorer with its own settings and those of the detectors that are named."""
    seed = None if np.ndim(seeds) else int(seeds)  # type: ignore[arg-type]
    own = {field.name for field in fields(Scorer) if field.init} - {"model", "detectors", "seed", "latents", "options"}
    options = {name: value for name, value in settings.items() if name not in own}
    given = (detectors,) if isinstance(detectors, str) or hasattr(detectors, "needs") else tuple(detectors)
    known = {
        option
        for name in given
        if isinstance(name, str) and name in DETECTORS
        for option in options_of(load(DETECTORS[name][1]))
    }
    for name in options:
        check_name("setting of detect", name, (*own - {"calibrating"}, *known))
    scoring = {name: value for name, value in settings.items() if name in own}
    return Scorer(model, detectors, seed, latents=latents, options=options, **scoring)
