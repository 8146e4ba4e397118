"""Runs and scores are float32, whatever the networks compute in and whatever width the host program offers.

They are traced and not compiled: what would be of another dtype shows, and so does a loop whose values change theirs.
"""

import dataclasses
from typing import get_args

import jax
import jax.numpy as jnp
import pytest
from extensions import CloserEmbedding
from plans import traced_dtypes

from memattn_jax import StableDiffusion
from memattn_jax.detectors import DETECTORS, Scorer
from memattn_jax.mitigations import AttentionMask
from memattn_jax.mitigations.clip_embedding import ClipEmbedding
from memattn_jax.mitigations.embedding_noise import EmbeddingNoise
from memattn_jax.mitigations.embedding_optimization import EmbeddingOptimization
from memattn_jax.mitigations.guard_guidance import GuardGuidance
from memattn_jax.mitigations.guidance_transition import GuidanceTransition, Transition
from memattn_jax.mitigations.noise_optimization import NoiseOptimization
from memattn_jax.mitigations.noise_perturbation import Form, NoisePerturbation
from memattn_jax.mitigations.paraphrase_guidance import ParaphraseGuidance
from memattn_jax.mitigations.spike_attenuation import SpikeAttenuation
from memattn_jax.mitigations.stability_clamp import StabilityClamp
from memattn_jax.mitigations.value_neurons import ValueNeurons
from memattn_jax.registries import SCHEDULERS
from memattn_jax.settings import jax_settings

PROMPTS = ["the cat", "a"]
MITIGATIONS = [
    AttentionMask(),
    ClipEmbedding("b"),
    ClipEmbedding("c"),
    EmbeddingNoise(),
    EmbeddingOptimization(),
    GuardGuidance(),
    *map(GuidanceTransition, get_args(Transition)),
    NoiseOptimization(),
    *map(NoisePerturbation, get_args(Form)),
    ParaphraseGuidance({"a": ["the"]}),
    SpikeAttenuation(),
    CloserEmbedding(),
]
RUNS = [*(("mitigation", each) for each in MITIGATIONS), *(("scheduler", name) for name in SCHEDULERS)]


@pytest.fixture(scope="module")
def half(model, matrices):
    """A text encoder and a UNet in bfloat16."""
    unet = jax.tree.map(lambda weight: weight.astype(jnp.bfloat16), matrices.unet)
    return dataclasses.replace(StableDiffusion.from_pretrained(model, dtype="bfloat16"), unet=unet)


@pytest.mark.parametrize("mitigation", MITIGATIONS, ids=lambda each: type(each).__name__)
def test_mitigations_in_half_precision(half, mitigation):
    assert traced_dtypes(half, PROMPTS, mitigation=mitigation) == {"float32"}


@pytest.mark.parametrize(("setting", "value"), RUNS)
def test_runs_with_64_bits_at_hand(matrices, setting, value):
    with jax_settings(jax_enable_x64=True):
        assert traced_dtypes(matrices, PROMPTS, **{setting: value}) == {"float32"}


@pytest.mark.slow
def test_fitted_mitigations_with_64_bits_at_hand(sd, matrices):
    clamp = StabilityClamp(tuple("ab")).fit(matrices, steps=3)
    neurons = ValueNeurons(tuple("ab"), noises=2).fit(sd)
    with jax_settings(jax_enable_x64=True):
        assert traced_dtypes(matrices, PROMPTS, mitigation=clamp) == {"float32"}
        assert traced_dtypes(sd, PROMPTS, mitigation=neurons) == {"float32"}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_scores_with_64_bits_at_hand(model, dtype):
    """Of a detector that is not fitted, too."""
    with jax_settings(jax_enable_x64=True):
        sd = StableDiffusion.from_pretrained(model, dtype=dtype)
        scorer = Scorer(sd, tuple(DETECTORS), steps=4, attribute=True, calibrating=True)

        def scored():
            found = scorer.start(PROMPTS)
            return found.scores, found.attention, found.gradients

        assert {str(leaf.dtype) for leaf in jax.tree.leaves(jax.eval_shape(scored))} == {"float32"}
