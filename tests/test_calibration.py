"""Calibrations: what they are fitted on, their files, and what stands out against them."""

import dataclasses
import json
import math
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from verb_runs import CLEAN, FAST, NEW, command, read

from memattn_jax import Calibration, InputError, demo
from memattn_jax.commands import detect
from memattn_jax.commands.scoring import identity, make_scorer, match_calibration
from memattn_jax.detectors import Scorer
from memattn_jax.detectors.calibration.attention_excess import KINDS, CleanAttention, kinds, labels, listed
from memattn_jax.detectors.calibration.conformal import threshold
from memattn_jax.detectors.calibration.file import load_calibration, to_json
from memattn_jax.detectors.calibration.fit import calibrate
from memattn_jax.detectors.calibration.verdicts import Rule, fitting_rows
from memattn_jax.detectors.scorer import score_batches


def test_clean_prompts_without_a_finite_score_are_left_out(sd):
    """With all their scores, so that the detectors' rows still belong together."""
    scorer = Scorer(sd, ("noise_norm", "entropy_e", "text_baseline"), steps=4, attribute=True)
    clean = scorer(CLEAN[:4])
    other = np.arange(4, dtype=np.float32)
    broken = {"noise_norm": np.array([1, math.nan, 3, 2], np.float32), "entropy_e": other, "text_baseline": other}
    calibration = calibrate(scorer, [dataclasses.replace(clean, scores=broken)], 0.5)
    assert calibration.scores["noise_norm"].tolist() == [1, 3, 2]
    assert calibration.scores["entropy_e"].tolist() == [0, 2, 3]
    assert calibration.judged(broken) == ("noise_norm", "entropy_e")  # no verdict from the text alone
    assert list(calibration.memorized(clean)) == ["noise_norm", "entropy_e"]
    none = {name: np.full(4, math.nan, np.float32) for name in broken}
    with pytest.raises(InputError, match=r"^0 of 4 .*finite"):
        calibrate(scorer, [dataclasses.replace(clean, scores=none)], 0.5)


def test_attention_of_clean_prompts():
    """Two clean prompts of one and two words; the padding is one entry, and shorter prompts have more of it."""
    attention = np.array([[0.5, 0.2, 0.1, 0.15, 0.05], [0.4, 0.3, 0.06, 0.2, 0.04]], np.float32)
    lengths = np.array([3, 4])
    clean = CleanAttention.fit(attention, lengths)
    means = {"begin": 0.45, "prompt": (0.2 + 0.3 + 0.06) / 3, "end": 0.15, "padding": (0.2 + 0.04) / 2}
    assert clean.means == pytest.approx(means)
    np.testing.assert_allclose(clean.positions, [means["prompt"], 0.25, 0.06, means["prompt"], means["prompt"]])
    rows = [listed(row, length) for row, length in zip(attention, lengths, strict=True)]
    np.testing.assert_allclose(rows[0], [0.5, 0.2, 0.1, 0.2])
    expected = [[0.5 / 0.45, 0.8, 0.1 / 0.15, 0.2 / 0.12], [0.4 / 0.45, 1.2, 1, 0.2 / 0.15, 0.04 / 0.12]]
    for row, length, ratios in zip(rows, lengths, expected, strict=True):
        np.testing.assert_allclose(clean.excess(row, length), ratios, rtol=1e-5)
        assert clean.stand_out(clean.excess(row, length), length).tolist() == []
    largest = {"begin": 0.5 / 0.45, "prompt": 1.2, "end": 0.2 / 0.15, "padding": 0.2 / 0.12}
    assert clean.margins == pytest.approx(largest)
    other = np.array([0.2, 0.31, 0.02, 0.47], np.float32)
    assert clean.stand_out(clean.excess(other, 3), 3).tolist() == [3, 1]
    assert [KINDS[kind] for kind in kinds(3, 4)] == ["begin", "prompt", "end", "padding"]
    assert labels(["<s>", "cat", "</s>"], 2) == ["<begin>", "cat", "<end>", "<padding ×2>"]
    full = np.array([0.4, 0.1, 0.1, 0.2, 0.2], np.float32)
    np.testing.assert_array_equal(listed(full, 5), full)
    assert len(clean.excess(full, 5)) == 5


def test_only_an_excess_stands_out():
    """Neither less attention than in clean prompts, nor as much more as one in twenty clean prompts has."""
    rng = np.random.default_rng(0)
    attention = rng.dirichlet([40, 5, 5, 5, 10, 10], 400).astype(np.float32)
    clean = CleanAttention.fit(attention, np.full(400, 5))
    assert min(clean.margins.values()) >= 1
    new = rng.dirichlet([40, 5, 5, 5, 10, 10], 400).astype(np.float32)
    found = [clean.stand_out(clean.excess(row, 5), 5) for row in new]
    for kind in range(4):
        share = np.mean([np.isin(kinds(5, 6)[entries], kind).any() for entries in found])
        assert 0.02 < share < 0.09, KINDS[kind]
    assert clean.stand_out(np.full(6, 0.9, np.float32), 5).tolist() == []
    assert clean.stand_out(np.full(6, 1.0, np.float32), 5).tolist() == []


def test_files_that_hold_no_calibration(tmp_path):
    for content in ("{", "[]", "{}", '{"format": 3, "model": "x"}'):
        (tmp_path / "c.json").write_text(content)
        with pytest.raises(InputError, match=r"c\.json.*`detect --calibrate`"):
            load_calibration(tmp_path / "c.json")
    (tmp_path / "c.json").write_text('{"model": "x", "settings": {}, "fpr": 0.01, "thresholds": {}, "attention": []}')
    with pytest.raises(InputError, match=r"c\.json.*version"):
        load_calibration(tmp_path / "c.json")


@pytest.fixture(scope="module")
def plain(sd) -> Calibration:
    scorer = Scorer(sd, ("entropy_e", "noise_norm"), steps=4, attribute=True)
    clean = list(score_batches(scorer, ((prompt, 0) for prompt in CLEAN), 4))
    return calibrate(scorer, clean, 0.1, clean)


def test_a_calibration_survives_its_file(plain, tmp_path):
    fits = {"latent_step_deviation": {"mean": np.float32([1 / 3, 2]), "deviation": np.float32([0.1, 1e-9])}}
    calibration = dataclasses.replace(plain, fits=fits)
    (tmp_path / "c.json").write_text(to_json(calibration))
    loaded = load_calibration(tmp_path / "c.json")
    assert to_json(loaded) == to_json(calibration)
    for part in ("scores", "own_noise"):
        for name, row in getattr(calibration, part).items():
            np.testing.assert_array_equal(getattr(loaded, part)[name], row)
    for name, row in fits["latent_step_deviation"].items():
        np.testing.assert_array_equal(loaded.fits["latent_step_deviation"][name], row)
    np.testing.assert_array_equal(loaded.attention.positions, calibration.attention.positions)


@pytest.mark.parametrize("bad", ["NaN", "Infinity", "null", "1e999"])
@pytest.mark.parametrize("part", ["scores", "own_noise", "attention", "statistics", "fits"])
def test_a_number_that_is_not_finite_is_refused(plain, tmp_path, bad, part):
    fits = {"latent_step_deviation": {"mean": np.ones(4, np.float32), "deviation": np.ones(4, np.float32)}}
    content = json.loads(to_json(dataclasses.replace(plain, fits=fits)))

    def spoil(value):
        if isinstance(value, dict):
            key = next(iter(value))
            return value | {key: spoil(value[key])}
        return [*value[:-1], "BAD"] if isinstance(value, list) else "BAD"

    content[part] = spoil(content[part])
    (tmp_path / "c.json").write_text(json.dumps(content).replace('"BAD"', bad))
    with pytest.raises(InputError, match=r"c\.json: .* not finite"):
        load_calibration(tmp_path / "c.json")


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"seed": 3}, "seed 0, not 3"),
        ({"guidance_scale": 2.0}, "guidance_scale 7.5, not 2.0"),
        ({"steps": 5}, "runs of 4 steps, not of 5"),
    ],
)
def test_a_calibration_that_was_not_asked_for_and_does_not_match_is_not_used(plain, sd, other, reason):
    """Nor are its fits: `all` leaves out the detector that needs one, also in a worker, and naming it is refused."""
    fit = {"mean": np.ones(4, np.float32), "deviation": np.ones(4, np.float32)}
    given = dataclasses.replace(plain, fits={"latent_step_deviation": fit})
    options = detect.Options(prompt=("a",), detectors="all", **other)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        scorer, used = match_calibration(sd, options, given)
        worker = make_scorer(sd, options, used)
    first, *others = [str(warning.message) for warning in warned]
    assert first.startswith("no verdicts: ")
    assert reason in first
    assert [other[:33] for other in others] == ["latent_step_deviation is left out"] * 2
    assert used is None
    assert "latent_step_deviation" not in scorer.detectors
    assert scorer.detectors.keys() == worker.detectors.keys()
    assert scorer.steps == other.get("steps", 50)
    named = dataclasses.replace(options, detectors="latent_step_deviation")
    with (
        pytest.warns(UserWarning, match="^no verdicts: "),
        pytest.raises(InputError, match="must be fitted on clean prompts"),
    ):
        match_calibration(sd, named, given)
    with pytest.raises(InputError, match=reason):
        match_calibration(sd, dataclasses.replace(options, calibration=Path("c.json")), given)
    scorer, used = match_calibration(sd, dataclasses.replace(options, **dict.fromkeys(other)), given)
    assert used is given
    assert "latent_step_deviation" in scorer.detectors


def test_naming_a_detector_that_the_built_in_calibration_does_not_fit_is_refused(tmp_path):
    asked = ("detect", "a", "--detectors", "latent_step_deviation", "--seed", 3, "--out", tmp_path)
    status, _, errors = command(*asked)
    assert (status, len(errors)) == (2, 2)
    assert "no verdicts: this calibration was fitted with seed 0, not 3" in errors[0]
    assert "latent_step_deviation must be fitted on clean prompts" in errors[1]


def test_a_threshold_that_no_score_reaches_is_null_in_the_manifest(plain, sd):
    """JSON has no infinity."""
    scorer = Scorer(sd, ("entropy_e", "noise_norm"), steps=4)
    for level, reached in ((0.01, False), (0.3, True)):
        found = identity(scorer, detect.Options(prompt=("a",)), plain, Rule(plain.joint(scorer.judging), level))
        thresholds = json.loads(json.dumps(found, allow_nan=False))["settings"]["thresholds"]
        assert {name: limit is not None for name, limit in thresholds.items()} == dict.fromkeys(scorer.judging, reached)


@pytest.mark.slow
def test_too_few_clean_prompts_warn(model, prompt_files, tmp_path):
    """And no prompt is called clean at that rate."""
    status, _, errors = command(
        "detect", *NEW, "--model", model, "--calibrate", prompt_files / "clean.txt", "--out", tmp_path, "--no-explain",
        *FAST,
    )  # fmt: skip
    assert status == 0
    kept = len(CLEAN) - fitting_rows(len(CLEAN)).sum()
    (warning,) = errors
    assert warning.startswith("warning: too few clean prompts for a rate of 0.01")
    assert f" {kept}, and 99 " in warning
    assert [row["verdict"] for row in read(tmp_path / "results.jsonl")] == ["unknown"] * len(NEW)


@pytest.mark.slow
def test_the_run_that_calibrates_scores_as_one_that_is_given_the_calibration(model, prompt_files, tmp_path):
    """Also by a detector that the calibration fits, and without tokens where none are asked for."""
    asked = ("detect", *NEW, "--model", model, "--detectors", "latent_step_deviation", "--no-explain", *FAST)
    both = {"a": ("--calibrate", prompt_files / "clean.txt"), "b": ("--calibration", tmp_path / "a/calibration.json")}
    rows = {}
    for out, source in both.items():
        assert command(*asked, *source, "--fpr", 0.3, "--out", tmp_path / out)[0] == 0
        rows[out] = read(tmp_path / out / "results.jsonl")
    assert rows["a"] == rows["b"]
    for row in rows["a"]:
        assert math.isfinite(row["latent_step_deviation"])
        assert row["error"] is None
        assert "tokens" not in row


def test_a_folder_with_a_calibration_is_not_calibrated_into(model, prompt_files, tmp_path):
    """Without a word: it may be the one that a table beside it was made with."""
    (tmp_path / "calibration.json").write_text("{}")
    asked = ("detect", "--model", model, "--calibrate", prompt_files / "clean.txt", "--out", tmp_path)
    status, _, errors = command(*asked)
    assert (status, "holds calibration.json already" in errors[-1]) == (2, True)
    assert (tmp_path / "calibration.json").read_text() == "{}"


@pytest.mark.slow
def test_the_built_in_model_has_thresholds(tmp_path):
    """Of the model that it lies beside: without arguments, detect distinguishes a memorized prompt from a clean one."""
    status, printed, errors = command("detect", "--out", tmp_path)
    assert (status, errors) == (0, [])
    assert printed[0] == demo.NOTE
    memorized, clean = read(tmp_path / "results.jsonl")
    assert (memorized["verdict"], clean["verdict"]) == ("memorized", "clean")
    assert "noise_norm" in memorized["over"]
    assert "noise_norm: 1 of 2 prompts over the threshold (*)" in printed
    assert any(line.startswith("memorized: 1 of 2 prompts, at --fpr 0.01: 0.0 expected") for line in printed)
    assert "[<" in printed[3] or "no token stands out" in printed[3]


@pytest.mark.slow
def test_a_run_that_is_refused_leaves_the_calibration_that_is_there(
    calibrated, model, prompt_files, tmp_path, monkeypatch
):
    shutil.copytree(calibrated, tmp_path / "out")
    before = (tmp_path / "out" / "calibration.json").read_bytes()
    (tmp_path / "other.txt").write_text("".join(f"{prompt} again\n" for prompt in CLEAN))
    arguments = ("--model", model, "--calibrate", tmp_path / "other.txt", "--prompts", prompt_files / "new.txt")
    status, _, errors = command("detect", *arguments, "--out", tmp_path / "out", *FAST)
    assert (status, "other settings" in errors[-1]) == (2, True)
    assert (tmp_path / "out" / "calibration.json").read_bytes() == before
    (tmp_path / "out" / "report.html").write_text("of the run before")
    status, _, _ = command("detect", *arguments, "--out", tmp_path / "out", "--overwrite", *FAST)
    assert status == 0
    assert (tmp_path / "out" / "calibration.json").read_bytes() != before
    assert not (tmp_path / "out" / "report.html").exists()
    manifest = tmp_path / "out" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"command": "detect"', '"command": "generate"'))
    monkeypatch.setattr(detect, "score_log", None)  # refused before anything is calibrated
    status, _, errors = command("detect", *arguments, "--out", tmp_path / "out", *FAST)
    assert (status, "holds results of `generate`" in errors[-1]) == (2, True)


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--fpr", "--fdr"])
def test_a_rate_where_no_detector_judges_is_refused(option, calibrated, model, tmp_path):
    inputs = ("--model", model, "--calibration", calibrated / "calibration.json", "--detectors", "text_baseline")
    status, _, errors = command("detect", "a", *inputs, option, 0.3, "--out", tmp_path / "out")
    assert (status, f"{option} sets the rate of verdicts" in errors[-1]) == (2, True)


def test_a_rate_next_to_one_takes_the_lowest_clean_score():
    assert threshold(np.arange(5.0), 1 - 1e-13) == 0
