"""The guard, which mitigates the prompts that its detector finds."""

import dataclasses
import math
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from verb_runs import NEW, command, read

from memattn_jax import Guard, InputError
from memattn_jax.detectors.calibration.conformal import threshold
from memattn_jax.detectors.calibration.file import load_calibration
from memattn_jax.mitigations import AttentionMask, Mitigation, compose
from memattn_jax.mitigations.random_words import RepeatedWords
from memattn_jax.pytree import pytree
from memattn_jax.report.results import GUARD_BLIND, format_row, image_row, measure


@pytest.mark.slow
def test_a_guard_mitigates_whom_its_detector_finds(matrices):
    """Rows below the threshold are as without a guard, rows above as with the mitigation."""
    unmitigated = matrices.sample(NEW, steps=4, seeds=[1, 2, 3])
    mitigation = AttentionMask(mask="summary")
    masked = matrices.sample(NEW, steps=4, seeds=[1, 2, 3], mitigation=mitigation)
    scores = matrices.sample(NEW, steps=4, seeds=[1, 2, 3], guard=Guard(math.inf, mitigation=mitigation)).guard_scores
    middle = float(np.median(scores))
    guarded = matrices.sample(NEW, steps=4, seeds=[1, 2, 3], guard=Guard(middle, mitigation=mitigation))
    assert guarded.mitigated.tolist() == (scores > middle).tolist()
    assert guarded.mitigated.sum() == 1
    for row, mitigated in enumerate(guarded.mitigated):
        same, other = (masked, unmitigated) if mitigated else (unmitigated, masked)
        assert np.abs(guarded.latents[row] - other.latents[row]).max() > 1e-3
        scale = np.abs(same.latents[row]).max()
        np.testing.assert_allclose(guarded.latents[row] / scale, same.latents[row] / scale, atol=1e-5)
    own = matrices.detect(NEW, "noise_norm", seeds=[1, 2, 3], batch_size=4)["noise_norm"]
    np.testing.assert_allclose(guarded.guard_scores, own, rtol=1e-5)
    for limit in (math.nan, math.inf, -math.inf):  # what tells nothing calls no row clean
        assert matrices.sample(NEW, steps=4, seeds=[1, 2, 3], guard=Guard(limit, mitigation=mitigation)).mitigated.all()


UNTOUCHED = """
import sys
import numpy as np
from memattn_jax import Guard, StableDiffusion
sd = StableDiffusion.from_pretrained(sys.argv[1])
prompts, options = ["the cat", "zebra on the hill", "a"], {"steps": 4, "seeds": [1, 2, 3]}
plain = sd.sample(prompts, **options)
middle = float(np.median(sd.sample(prompts, guard=Guard(0.0), **options).guard_scores))
guarded = sd.sample(prompts, guard=Guard(middle), **options)
below = ~guarded.mitigated
assert below.sum() == 2
guarded, plain = (np.asarray(run.latents)[below] for run in (guarded, plain))
np.testing.assert_allclose(guarded, plain, atol=1e-5 * np.abs(plain).max())
"""


@pytest.mark.slow
def test_rows_below_a_guards_threshold_stay_as_they_are(model):
    """In programs compiled as users compile them."""
    command = [sys.executable, "-c", UNTOUCHED, str(model)]
    done = subprocess.run(command, env=os.environ | {"XLA_FLAGS": ""}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_guard_mitigates_what_it_cannot_score(matrices):
    """A row whose score is NaN, since its latents are, beside two that are clean; the table says so."""
    noise = np.array(matrices.noise((1, 2, 3)))
    noise[1] = math.nan
    run = matrices.sample(NEW, steps=4, latents=noise, guard=Guard(1e6))
    assert run.mitigated.tolist() == [False, True, False]
    assert np.isnan(run.guard_scores).tolist() == [False, True, False]
    blind = dataclasses.replace(run, finite=np.ones(3, bool))
    rows = [image_row(i, measure(blind), i, matrices.tokenizer, {}, {}) for i in range(3)]
    assert [row["error"] for row in rows] == [None, GUARD_BLIND, None]
    assert [row["mitigated"] for row in rows] == [False, True, False]
    assert format_row(rows[1] | {"E": 1.0, "D": 2.0}) == f"00001.png  E 1.0000  D 2.0000  {NEW[1]}  ({GUARD_BLIND})"


def test_guard_refusals(sd):
    with pytest.raises(InputError, match="first-step detector 'entropy_d'; did you mean 'entropy_e'"):
        Guard(1.0, "entropy_d")
    with pytest.raises(InputError, match="guard"):
        sd.sample(["a"], guard=Guard(1.0), mitigation=AttentionMask())


@pytest.mark.slow
def test_a_fitted_threshold_judges_no_other_size(calibrated, sd, model, tmp_path):
    """Scores are norms over all pixels; a threshold of one's own is for whichever size is sampled."""
    fitted = Guard.from_calibration(load_calibration(calibrated / "calibration.json"))
    calibration = load_calibration(calibrated / "calibration.json")
    others = dataclasses.replace(calibration, settings={**calibration.settings, "options": {"noises": [8]}})
    assert Guard.from_calibration(others).options == {"noises": (8,)}
    own = sd.unet.config.sample_size
    size = {"height": 2 * own * sd.vae.config.scale}
    with pytest.raises(InputError, match=f"the model's own, but these are {2 * own} × {own}"):
        sd.sample(["a"], steps=3, guard=fitted, **size)
    guarded = sd.sample(["a"], steps=3, guard=dataclasses.replace(fitted, own_size=False), **size)
    assert guarded.latents.shape[1] == 2 * own
    use = ("--model", model, "--guard", "noise_norm", "--calibration", calibrated / "calibration.json")
    status, _, errors = command("generate", *NEW, *use, "--height", size["height"], "--out", tmp_path / "out")
    assert (status, "the model's own" in errors[-1]) == (2, True)


@pytest.mark.slow
def test_generate_with_a_guard(calibrated, model, tmp_path):
    use = ("--model", model, "--steps", 4, "--guard", "noise_norm")
    path = calibrated / "calibration.json"
    status, _, errors = command("generate", *NEW, *use, "--calibration", path, "--out", tmp_path / "a")
    assert (status, errors) == (0, [])
    calibration = load_calibration(path)
    limit = threshold(np.sort(calibration.own_noise["noise_norm"]), 0.1)
    for row in read(tmp_path / "a" / "results.jsonl"):
        assert row["mitigated"] == (row["guard_score"] > limit)
        assert row["settings"]["guard"] == "noise_norm"
    with pytest.raises(InputError, match=r"0\.01 .*99 .*18"):
        Guard.from_calibration(calibration, fpr=0.01)
    many = dataclasses.replace(calibration, settings=calibration.settings | {"probes": 4, "seed": 7})
    assert Guard.from_calibration(many).threshold == limit  # clean prompts seen as a guard sees: one noise, their own
    for options, message in (
        ((), "--guard needs --calibration FILE"),
        (("--calibration", path, "--guard", "sharpness"), "'sharpness'"),
        (("--calibration", path, "--dtype", "bfloat16"), "another model"),
    ):
        status, _, errors = command("generate", "a", *use, "--out", tmp_path / "b", *options)
        assert status == 2
        assert message in errors[-1]


@pytree
class Weaker(Mitigation):
    """Changes the UNet's weights."""

    factor: float = 0.5

    def weights(self, unet):
        return jax.tree.map(lambda weight: self.factor * weight, unet)


@pytest.mark.slow
def test_a_guarded_row_has_the_words_that_its_mitigation_put(matrices):
    """Also where the mitigation changes weights, so that two runs are made and rows chosen."""
    mitigation = compose(RepeatedWords(), Weaker())
    plain, mitigated, guarded = (
        matrices.sample(NEW, steps=4, seeds=[1, 2, 3], **how)
        for how in ({}, {"mitigation": mitigation}, {"guard": Guard(-math.inf, mitigation=mitigation)})
    )
    assert guarded.mitigated.all()
    assert (np.asarray(plain.lengths) != np.asarray(mitigated.lengths)).any()
    for name in ("input_ids", "lengths"):
        np.testing.assert_array_equal(getattr(guarded, name), getattr(mitigated, name))
