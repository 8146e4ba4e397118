"""The first thing to run on a machine, here on a CPU with two virtual devices."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import smoke
from quick import xla_flags

from memattn_jax import StableDiffusion, demo

pytestmark = pytest.mark.slow

SMOKE = Path(__file__).parents[2] / "tpu" / "smoke.py"


@pytest.fixture(scope="module")
def report() -> dict:
    environment = os.environ | {"XLA_FLAGS": xla_flags(2), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, SMOKE, "--megabytes", "8"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_devices(report):
    assert report["devices"] == {"kind": "cpu", "here": 2, "everywhere": 2}
    assert report["sum"] == {"found": [3, 3], "expected": 3}
    assert (report["process"], report["processes"]) == (0, 1)
    assert report["versions"]["jax"] == jax.__version__


def test_step(report):
    scores = StableDiffusion.from_pretrained(demo.MODEL).detect(demo.SHOWCASE).scores
    for name, score in scores.items():
        np.testing.assert_allclose(report["step"]["scores"][name], score, rtol=1e-4)
    assert report["step"]["first_seconds"] > 0


def test_transfers(report):
    assert all(speed > 0 for speed in report["gigabytes_per_second"].values())


def test_a_wrong_sum_is_an_error(monkeypatch, capsys):
    monkeypatch.setattr(smoke, "collective", lambda devices: {"found": [2], "expected": 1})
    monkeypatch.setattr(smoke, "step", lambda: {"scores": {}})
    assert smoke.main(["--megabytes", "1"]) == 1
    capsys.readouterr()
