"""The benchmark suite: what it prints and writes, on the rows that take seconds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from benchmark.worker import Worker

from memattn_jax import InputError

pytestmark = pytest.mark.slow

BENCH = Path(__file__).parents[1] / "scripts" / "bench.py"


def bench(*options: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(BENCH), *options], capture_output=True, text=True)


def test_rows_and_file(tmp_path):
    file = tmp_path / "bench.json"
    done = bench("--rows", "sample_demo_10,bytes_kept", "--rounds", "2", "--json", str(file))
    assert done.returncode == 0, done.stderr
    sample, kept = json.loads(file.read_text())
    assert (sample["row"], kept["row"]) == ("sample_demo_10", "bytes_kept")
    assert 0.1 < sample["ratio_low"] <= sample["ratio"] <= sample["ratio_high"] < 10
    assert sample["ratio"] == pytest.approx(sample["ours_seconds"] / sample["other_seconds"], rel=0.5)
    assert sample["rounds"] == 2
    assert sample["versions"]["torch"].startswith("2.13.0")
    assert "cores" in sample["processor"]
    assert kept["ratio"] == pytest.approx(39_424 / 66_390_016)
    table = [line.split(" | ")[0] for line in done.stdout.splitlines() if line.startswith("| `")]
    assert table == ["| `sample_demo_10`", "| `bytes_kept`"]


def test_unknown_row():
    done = bench("--rows", "unet_sd15,sample_demo")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("bench.py: error: no row unet_sd15; there are unet_sd14,")


def test_a_side_that_fails_says_why():
    with pytest.raises(InputError, match="nowhere"):
        Worker("ours:unet", {"folder": "nowhere", "size": 64, "calls": ("pair",)})
