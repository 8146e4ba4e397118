"""The compiled programs of detectors: one for all first-step detectors, one for all trajectory detectors."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from memattn_jax.detectors.attribution import token_gradients
from memattn_jax.detectors.first_step import FirstStep, Inputs, Unconditional
from memattn_jax.detectors.noises import other_noise
from memattn_jax.detectors.protocol import FirstStepDetector, ImageDetector, Images, TrajectoryDetector
from memattn_jax.diffusion.sampling import Call, Plan, observe
from memattn_jax.entropy import mean_over_sites
from memattn_jax.errors import InputError
from memattn_jax.interceptors import Tap, TokenMeans
from memattn_jax.models.kernels.program import program

Kept = dict[str, Any]


class Attribution(NamedTuple):
    """Token attribution at the first step, float32 [batch, tokens]; see `Detection`.

    Attributes:
      attention: their share of the attention, mean over pixels, heads, sites and probes.
      gradients: how much each moves the noise norm.
    """

    attention: Array
    gradients: Array


def merged_taps(detectors: Iterable[FirstStepDetector | TrajectoryDetector]) -> dict[str, Tap]:
    """The taps of all detectors by name; InputError where two use one name for different taps."""
    merged: dict[str, Tap] = {}
    for detector in detectors:
        for name, tap in detector.taps.items():
            if name == "tokens" or merged.setdefault(name, tap) is not tap:
                raise InputError(f"two detectors have a tap named {name!r}; rename one")
    return merged


@program("parts")
def describe_unconditional(inputs: Inputs, *, parts: frozenset[str]) -> Unconditional:
    """First-step results for the empty prompt, computed once per model and noise; see `FirstStep`."""
    return FirstStep(inputs, linearize="energy_gradient" in parts).describe_unconditional(parts)


@program("attribute")
def score_first_step(
    inputs: Inputs, detectors: Mapping[str, FirstStepDetector], *, attribute: bool = False
) -> tuple[dict[str, Array], Attribution | None]:
    """Scores of first-step detectors, float32 [batch] each, and with `attribute` the token attribution."""
    step = FirstStep(
        inputs,
        linearize=attribute or any(detector.derivatives for detector in detectors.values()),
        taps=merged_taps(detectors.values()),
    )
    scores = {name: detector.score(step) for name, detector in detectors.items()}
    if not attribute:
        return scores, None
    attention = mean_over_sites(step.tokens).mean(axis=1)  # over probes
    return scores, Attribution(attention, token_gradients(step))


@program("probes")
def score_trajectory(
    plan: Plan, detectors: Mapping[str, TrajectoryDetector | ImageDetector], *, probes: int
) -> tuple[dict[str, Array], Kept]:
    """Scores of trajectory and image detectors in one sampling run.

    Args:
      plan: a run of DDIM whose rows are prompts times probes, a prompt's probes beside each other; without taps.
      detectors: by name.
      probes: that scores are averaged over.

    Returns:
      {name: float32 [prompts]}, NaN of those that are not fitted; and what these kept, {name: tree of
      [prompts, probes, calls, ...]}, which they are fitted on.
    """
    taps = {"tokens": TokenMeans()} | merged_taps(detectors.values())

    def observer(call: Call) -> Kept:
        return {name: detector.observe(call) for name, detector in detectors.items()}

    latents, kept = observe(Plan(**(vars(plan) | {"taps": taps})), observer)
    prompts = len(plan.noise) // probes

    def mean(score: Array) -> Array:
        return score.reshape(prompts, probes).mean(axis=1)

    def by_prompt(values: Array) -> Array:
        return jnp.moveaxis(values, 0, 1).reshape(prompts, probes, *values.shape[:1], *values.shape[2:])

    scores, unfitted = {}, {}
    for name, detector in detectors.items():
        if detector.needs == "image":
            images = Images(plan.unet, latents, other_noise(plan.noise, 1), plan.context, plan.negative)
            scores[name] = mean(detector.score(images))  # type: ignore[attr-defined]
        elif detector.fitted:
            scores[name] = mean(detector.finish(kept[name], plan.lengths))
        else:
            scores[name] = jnp.full(prompts, jnp.nan, jnp.float32)
            unfitted[name] = jax.tree.map(by_prompt, kept[name])
    return scores, unfitted
