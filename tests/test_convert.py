"""`convert`: the exported detector gives what detect gives, where this package cannot be imported."""

import dataclasses
import json
import re
import subprocess
import sys
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import verb_runs
from exported import PROMPTS, check

from memattn_jax import StableDiffusion, demo
from memattn_jax.detectors import Scorer
from memattn_jax.detectors.calibration.file import load_calibration, to_json
from memattn_jax.detectors.calibration.fit import calibrate
from memattn_jax.registries import FIRST_STEP

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
(SERVE,) = re.findall(r"```py\n(.*?)```", (ROOT / "docs" / "serving.md").read_text(encoding="utf-8"), flags=re.DOTALL)
ALONE = """
import runpy, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("memattn_jax", "flax"):
            raise ImportError(f"{name} is not to be imported")

sys.meta_path.insert(0, Blocked())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0])
"""

command = partial(verb_runs.command, "convert")


def test_the_readme_program_runs_without_this_package(tmp_path):
    """The whole way, for three platforms: scores and verdicts are those of detect on the built-in model."""
    out = tmp_path / "new" / "detector.zip"
    status, printed, errors = command("--out", out, "--platforms", "cpu,tpu,cuda", "--batch-size", 2)
    assert (status, errors) == (0, [])
    assert printed[0] == demo.NOTE
    assert printed[1].startswith(f"{out}: {out.stat().st_size:,} bytes: ")
    assert printed[2].startswith("entropy_e, noise_norm on cpu, tpu, cuda: any number of prompts, in batches of 2, ")

    (tmp_path / "serve.py").write_text(SERVE)
    (tmp_path / "alone.py").write_text(ALONE)
    prompts = (*demo.SHOWCASE, "a" + " penguin" * 90)  # three in batches of two, the last one too long
    done = subprocess.run(
        [sys.executable, "alone.py", "serve.py", str(out), *prompts],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["prompt"] for row in rows] == list(prompts)

    calibration = load_calibration(demo.CALIBRATION)
    sd = StableDiffusion.from_pretrained(demo.MODEL, dtype="float32")
    with pytest.warns(UserWarning, match="prompt cut at 77 tokens"):
        expected = sd.detect(prompts, site=calibration.settings["site"])
    check({name: np.float32([row[name] for row in rows]) for name in expected.scores}, expected.scores)
    over = calibration.memorized(expected)
    assert [row["over"] for row in rows] == [[name for name in over if over[name][i]] for i in range(len(prompts))]
    assert "noise_norm" in rows[0]["over"]
    assert rows[1]["over"] == []
    assert [row["verdict"] for row in rows[:2]] == ["memorized", "clean"]


def test_the_program_is_blocked_where_it_imports_this_package(tmp_path):
    """So that the test above can fail."""
    (tmp_path / "alone.py").write_text(ALONE)
    (tmp_path / "cheat.py").write_text("import memattn_jax")
    done = subprocess.run([sys.executable, "alone.py", "cheat.py"], capture_output=True, text=True, cwd=tmp_path)
    assert "memattn_jax is not to be imported" in done.stderr


BAD = [
    (("--detectors", "vibes"), "unknown detector 'vibes'; expected one of entropy_e"),
    (
        ("--detectors", "entropy_d"),
        f"--detectors entropy_d: only first-step detectors can be exported: {', '.join(FIRST_STEP)}",
    ),
    (("--detectors", "text_baseline"), "--detectors text_baseline: "),
    (("--batch-size", 0), "--batch-size 0: "),
    (("--platforms", "cpu,gpu"), "unknown platform 'gpu'; did you mean 'tpu'? expected one of cpu, cuda, rocm, tpu"),
    (("--platforms", "cpu,cpu"), "cpu,cpu"),
    (("--site", "attic"), "unknown cross-attention layer 'attic'"),
    (("--probes", 0), "--probes 0: "),
    (("--calibration", "none.json"), "--calibration none.json: "),
    (("--model", "none"), "none"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(map(str, arguments)) for arguments, _ in BAD])
def test_bad_input(model, tmp_path, arguments, message):
    given = arguments if "--model" in arguments else ("--model", model, *arguments)
    status, _, errors = command("--out", tmp_path / "d.zip", *given)
    assert status == 2
    assert len(errors) == 1
    assert message in errors[0]
    assert list(tmp_path.iterdir()) == []


def test_files_that_cannot_be_written(model, tmp_path):
    (tmp_path / "file").write_text("mine")
    for out, message in (
        (tmp_path / "file", "file: already exists"),
        (tmp_path / "file" / "d.zip", "file"),
        (tmp_path, f"--out {tmp_path}: "),
    ):
        status, _, errors = command("--model", model, "--out", out)
        assert status == 2
        assert len(errors) == 1
        assert message in errors[0]
    assert (tmp_path / "file").read_text() == "mine"


def metadata(path: Path) -> dict:
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read("metadata.json"))


def test_thresholds_come_along_if_they_fit(model, sd, tmp_path):
    """A calibration's settings are taken over; it is refused for other settings, and another model."""
    scorer = Scorer(sd, ("noise_norm",), seed=5, steps=4, attribute=True)
    calibration = calibrate(scorer, [scorer(PROMPTS)], 0.5)
    (tmp_path / "c.json").write_text(to_json(calibration))
    use = ("--model", model, "--detectors", "all", "--site", sd.unet.sites[0], "--calibration", tmp_path / "c.json")
    status, _, errors = command(*use, "--out", tmp_path / "refused.zip")
    assert (status, len(errors)) == (2, 1)
    assert f"site {sd.unet.sites[3]}, not {sd.unet.sites[0]}" in errors[0]
    use = ("--model", model, "--detectors", "noise_norm", "--calibration", tmp_path / "c.json")
    for overwrite in ((), ("--overwrite",)):
        status, printed, errors = command(*use, "--out", tmp_path / "d.zip", *overwrite)
        assert (status, errors) == (0, [])
    about = metadata(tmp_path / "d.zip")
    limits = calibration.joint(("noise_norm",)).thresholds(0.5)
    assert about["thresholds"] == limits
    assert about["fpr"] == 0.5
    assert about["settings"] | {"seed": 5, "steps": 4, "probes": 1, "site": sd.unet.sites[3]} == about["settings"]
    assert f"thresholds: noise_norm {limits['noise_norm']:.4f}" in printed
    status, _, errors = command(*use, "--out", tmp_path / "e.zip", "--steps", 5)
    assert (status, len(errors)) == (2, 1)
    assert "steps 4, not 5" in errors[0]
    (tmp_path / "c.json").write_text(to_json(dataclasses.replace(calibration, fpr=0.05)))
    status, _, errors = command(*use, "--out", tmp_path / "e.zip")
    assert (status, len(errors)) == (2, 1)
    assert "rate of 0.05" in errors[0]
    own = dataclasses.replace(calibration, settings=calibration.settings | {"seed": None})
    (tmp_path / "c.json").write_text(to_json(own))
    status, _, errors = command(*use, "--out", tmp_path / "e.zip")
    assert (status, len(errors)) == (2, 1)
    assert "the same noise" in errors[0]


def test_the_built_in_models_thresholds_are_left_out_where_they_do_not_fit(tmp_path):
    status, printed, errors = command("--out", tmp_path / "d.zip", "--detectors", "entropy_e", "--seed", 1)
    assert (status, len(errors)) == (0, 1)
    assert errors[0].startswith("warning: no verdicts: ")
    assert "seed 0, not 1" in errors[0]
    assert metadata(tmp_path / "d.zip")["thresholds"] == {}
    assert any(line.startswith("thresholds: none; ") for line in printed)
