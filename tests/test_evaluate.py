"""`evaluate`, as its users meet it."""

import csv
import json

import numpy as np
import pytest
from PIL import Image
from verb_runs import CLEAN, FAST, NEW, command

from memattn_jax.detectors import Scorer
from memattn_jax.detectors.calibration.file import load_calibration
from memattn_jax.detectors.calibration.verdicts import fitting_rows
from memattn_jax.detectors.detection import concatenate
from memattn_jax.detectors.scorer import score_batches
from memattn_jax.evaluation.metrics import auroc


@pytest.mark.slow
def test_evaluate(model, prompt_files, sd, tmp_path):
    names = ["entropy_e", "noise_norm", "latent_step_deviation", "text_baseline"]
    status, _, _ = command(
        "detect", "--model", model, "--calibrate", prompt_files / "clean.txt", "--detectors", ",".join(names[:3]),
        "--fpr", 0.1, "--out", tmp_path / "c", *FAST,
    )  # fmt: skip
    assert status == 0
    fit = load_calibration(tmp_path / "c" / "calibration.json").fits["latent_step_deviation"]
    scorer = Scorer(sd, names[2], steps=4, calibrating=True)
    clean = concatenate(list(score_batches(scorer, ((prompt, 0) for prompt in CLEAN), 4)))
    runs = clean.kept["latent_step_deviation"][fitting_rows(len(CLEAN))]
    np.testing.assert_allclose(fit["mean"], runs.mean(axis=(0, 1)), rtol=1e-5)
    np.testing.assert_allclose(fit["deviation"], runs.std(axis=(0, 1)), rtol=1e-3)
    status, printed, errors = command(
        "evaluate", "--model", model, "--memorized", prompt_files / "new.txt", "--clean", prompt_files / "clean.txt",
        "--detectors", ",".join(names[:3]), "--out", tmp_path / "e", *FAST, "--report",
        "--calibration", tmp_path / "c" / "calibration.json",
    )  # fmt: skip
    assert status == 0
    (warning,) = errors
    assert warning.startswith("warning: too few clean prompts for a false-positive rate of 1 %, 3 %, 5 %")
    assert f" {len(CLEAN)}, and 100 " in warning
    result = json.loads((tmp_path / "e" / "evaluation.json").read_text())
    assert (result["memorized"], result["clean"], result["nan"]) == (len(NEW), len(CLEAN), 0)
    assert list(result["detectors"]) == names
    scores = sd.detect(NEW + CLEAN, names, steps=4, batch_size=4, **fit)
    for name in names:
        found = result["detectors"][name]
        assert found["auroc"] == pytest.approx(auroc(scores[name][:3], scores[name][3:]))
        assert found["auroc_low"] <= found["auroc"] <= found["auroc_high"]
        assert list(found["tpr"]) == list(found["tpr_nearest"]) == ["0.01", "0.03", "0.05", "0.1"]
    forwards = {name: found["forwards_per_prompt"] for name, found in result["detectors"].items()}
    assert forwards["entropy_e"] < forwards["noise_norm"] == pytest.approx(1, rel=0.01)
    assert forwards["latent_step_deviation"] == 8
    assert forwards["text_baseline"] == 0
    assert all(found["seconds_per_prompt"] > 0 for found in result["detectors"].values())
    assert (tmp_path / "e" / "evaluation.md").read_text().splitlines() == printed[:6]
    with (tmp_path / "e" / "scores.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["prompt"] for row in rows] == [*NEW, *CLEAN]
    assert [row["memorized"] for row in rows] == ["1"] * len(NEW) + ["0"] * len(CLEAN)
    np.testing.assert_allclose([float(row["noise_norm"]) for row in rows], scores["noise_norm"], rtol=1e-4)
    assert all(f">{name}<" in (tmp_path / "e" / "report.html").read_text(encoding="utf-8") for name in names)
    with Image.open(tmp_path / "e" / "roc.png") as picture:
        assert picture.width > 500
    status, _, errors = command(
        "evaluate", "--model", model, "--memorized", prompt_files / "new.txt", "--clean", prompt_files / "clean.txt",
        "--out", tmp_path / "e",
    )  # fmt: skip
    assert status == 2
    assert f"{tmp_path / 'e'}: " in errors[0]
    assert "--overwrite" in errors[0]


def test_evaluate_refuses_an_empty_class(model, prompt_files, tmp_path):
    (tmp_path / "empty.txt").write_text("\n\n")
    for arguments, message in (
        (("--memorized", tmp_path / "empty.txt", "--clean", prompt_files / "clean.txt"), "empty.txt: "),
        (("--memorized", prompt_files / "new.txt"), "--clean FILE"),
        ((), "--memorized FILE"),
    ):
        status, _, errors = command("evaluate", "--model", model, *arguments, "--out", tmp_path / "e")
        assert status == 2
        assert message in errors[0]


def test_not_finite_scores_are_left_out_and_counted(tmp_path):
    from memattn_jax.report.evaluation import Evaluated, write_evaluation

    some, none = np.array([2.0, 3.0]), np.array([])
    table = write_evaluation(
        tmp_path, {"one": Evaluated(some, some - 1, 1, 1.0, 0.1), "two": Evaluated(none, some, 2, 1.0, 0.1)}, 2, 2, {}
    )
    result = json.loads((tmp_path / "evaluation.json").read_text())
    assert result["nan"] == 3
    assert result["detectors"]["one"]["auroc"] == 0.875
    assert result["detectors"]["two"]["auroc"] is None
    assert "–" in table
