"""Every detector, the token attention and the token gradients, against PyTorch on the same folder.

The velocity model has one resolution, which compiles sooner.
"""

import dataclasses

import micro
import numpy as np
import pytest
import torch
from torch_detectors import TorchDetectors

from memattn_jax import StableDiffusion
from memattn_jax.detectors import DETECTORS, Detection

pytestmark = pytest.mark.slow

PROMPTS = ("the cat", "an odd and long line on the hill in the land of the sun", "Z")
SEED, PROBES, STEPS, GUIDANCE, CHOSEN = 5, 2, 10, 3.0, (0, 3, 8)
CLEAN = (np.linspace(1, 2, STEPS, dtype=np.float32), np.linspace(0.1, 0.3, STEPS, dtype=np.float32))
MODEL_SCORES = tuple(name for name, (needs, _) in DETECTORS.items() if needs != "prompt")


@dataclasses.dataclass(frozen=True)
class Pair:
    """One model on both sides, and what each makes of the prompts."""

    ours: Detection
    blamed: Detection  # with attention and gradients
    theirs: TorchDetectors
    double: TorchDetectors
    probes: torch.Tensor  # [probes, channels, h, w]


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def pair(request, tmp_path_factory, random_model) -> Pair:
    folder = tmp_path_factory.mktemp(request.param)
    epsilon = request.param == "epsilon"
    micro.write_model(folder, random_model, request.param, unet=micro.TWO_RESOLUTIONS if epsilon else micro.UNET)
    sd = StableDiffusion.from_pretrained(folder)
    probes = np.asarray(sd.noise(tuple(range(SEED, SEED + PROBES))))
    settings = {"seeds": SEED, "probes": PROBES, "steps": STEPS}
    blamed = sd.detect(PROMPTS, "noise_norm", attribute=True, **settings) if epsilon else None
    ours = sd.detect(
        PROMPTS,
        MODEL_SCORES,
        guidance_scale=GUIDANCE,
        noise_norm_steps=CHOSEN,
        mean=CLEAN[0],
        deviation=CLEAN[1],
        attribute=blamed is None,  # once all in one program, once apart
        **settings,
    )
    return Pair(
        ours,
        blamed or ours,
        TorchDetectors(folder, STEPS),
        TorchDetectors(folder, STEPS, torch.float64),
        torch.from_numpy(np.moveaxis(probes, -1, 1).copy()),
    )


@pytest.fixture(scope="module")
def theirs(pair) -> dict[str, np.ndarray]:
    """{score: [prompts]}, the mean over probes."""
    rows, clean = [], tuple(map(torch.from_numpy, CLEAN))
    for prompt in PROMPTS:
        runs = [
            pair.theirs.first_step(x[None], prompt) | pair.theirs.trajectory(x[None], prompt, GUIDANCE, CHOSEN, clean)
            for x in pair.probes
        ]
        rows.append({name: torch.stack([run[name] for run in runs]).mean(0).numpy() for name in runs[0]})
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def test_scores(pair, theirs):
    """All detectors that look at the model, to 1e-4 relative."""
    assert theirs.keys() - {"attention"} == set(MODEL_SCORES)
    for name in MODEL_SCORES:
        assert np.ptp(theirs[name]) > 1e-3 * np.abs(theirs[name]).max(), f"{name} does not tell the prompts apart"
        np.testing.assert_allclose(pair.ours[name], theirs[name], rtol=1e-4, err_msg=name)


def test_the_variants_of_entropy_d_differ_here(theirs):
    assert np.abs(theirs["entropy_d"] - theirs["entropy_d_paper"]).max() > 1e-3


def test_sharpness_against_finite_differences(pair):
    """Central differences in float64 err by O(h²), 1e-6 here; our forward derivative in float32 is the less exact."""
    for prompt, score in zip(PROMPTS, pair.ours["sharpness"], strict=True):
        by_step = [
            np.mean([pair.double.sharpness_by_differences(x[None].double(), prompt, h) for x in pair.probes])
            for h in (1e-3, 1e-4)
        ]
        np.testing.assert_allclose(*by_step, rtol=1e-4)
        np.testing.assert_allclose(score, by_step[1], rtol=5e-4)


def test_attention_of_the_first_step(pair, theirs):
    np.testing.assert_allclose(pair.blamed.attention, theirs["attention"], rtol=1e-4, atol=1e-7)


def test_token_gradients(pair):
    for row, prompt in enumerate(PROMPTS):
        expected = pair.theirs.token_gradients(pair.probes, prompt)
        np.testing.assert_allclose(pair.blamed.gradients[row], expected, rtol=1e-4, atol=1e-4 * float(expected.max()))


def test_token_gradients_are_twice_those_of_the_authors_code(pair):
    """Which averages over the two rows of a guidance pair, one of them without a difference."""
    expected = 2 * pair.theirs.token_gradients_of_a_pair(pair.probes, PROMPTS[0])
    np.testing.assert_allclose(pair.blamed.gradients[0], expected, rtol=1e-4, atol=1e-4 * float(expected.max()))


def test_tokens(pair):
    assert pair.ours.lengths.tolist() == [pair.theirs.length(prompt) for prompt in PROMPTS]
