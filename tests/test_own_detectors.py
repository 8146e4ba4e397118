"""Detectors given as objects: where they read, in which kinds of lists, and those of a stranger's plain classes."""

import jax.numpy as jnp
import numpy as np
import pytest

from memattn_jax import Guard
from memattn_jax.detectors import FirstStepDetector, Scorer
from memattn_jax.detectors.bottleneck_spikiness import score_images
from memattn_jax.detectors.entropy_metrics import EntropyE
from memattn_jax.detectors.noise_norm import NoiseNormSteps
from memattn_jax.detectors.protocol import ImageDetector

PROMPTS = ["the cat", "a"]


class Largest(FirstStepDetector):
    """No `pytree`."""

    def __init__(self, factor: float):
        self.factor = factor

    def score(self, step):
        return self.factor * jnp.abs(step.difference).max(axis=(2, 3, 4)).mean(axis=1)


class Brightness(ImageDetector):
    """Likewise."""

    def score(self, images):
        return images.latents.mean(axis=(1, 2, 3))


def test_a_plain_class_guards_as_it_detects(matrices):
    scores = matrices.detect(PROMPTS, Largest(2.0), seeds=[0, 1])["Largest"]
    guard = Guard(float(scores.mean()), detector=Largest(2.0))
    run = matrices.sample(PROMPTS, steps=2, seeds=[0, 1], taps=None, guard=guard)
    np.testing.assert_allclose(run.guard_scores, scores, rtol=1e-5)
    assert run.mitigated.sum() == 1


def test_a_plain_class_scores_images(matrices):
    images = np.stack([np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8)])
    dark, light = score_images(matrices, images, seeds=(0, 1), detector=Brightness())
    assert dark != light


def test_the_site_of_a_call_is_that_of_objects_which_name_none(sd):
    first, last = sd.sites[0], sd.sites[-1]
    for given in ([EntropyE()], {"EntropyE": EntropyE()}):
        assert Scorer(sd, given, site=last).detectors["EntropyE"].site == last
        assert Scorer(sd, given).detectors["EntropyE"].site == sd.site_of_entropy()
    assert Scorer(sd, EntropyE(site=first), site=last).detectors["EntropyE"].site == first


def test_a_guard_reads_where_it_is_told(matrices):
    """By an object as by a name, also of a model whose layers are too few for the paper's."""
    runs = [
        matrices.sample(PROMPTS, steps=2, taps=None, guard=Guard(3.9, detector=detector, site=matrices.sites[0]))
        for detector in (EntropyE(), "entropy_e")
    ]
    np.testing.assert_array_equal(runs[0].guard_scores, runs[1].guard_scores)


@pytest.mark.parametrize("kind", [tuple, list, np.array])
def test_steps_come_in_any_kind_of_list(matrices, kind):
    scorer = Scorer(matrices, NoiseNormSteps(noise_norm_steps=kind([0, 2])), steps=4)
    assert scorer.detectors["NoiseNormSteps"].chosen.tolist() == [True, False, True, False]
