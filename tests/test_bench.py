"""The benchmark suite: what it prints and writes, on the rows that take seconds."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from benchmark import machine
from benchmark.gpu_rows import GPU_ROWS
from benchmark.rows import ROWS
from benchmark.worker import Worker

from memattn_jax import InputError

pytestmark = pytest.mark.slow

BENCH = Path(__file__).parents[1] / "scripts" / "bench.py"


def bench(*options: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(BENCH), *options], capture_output=True, text=True)


def test_rows_and_file(tmp_path):
    file = tmp_path / "bench.json"
    done = bench("--rows", "sample_demo_10,bytes_kept", "--rounds", "2", "--any-load", "--json", str(file))
    assert done.returncode == 0, done.stderr
    sample, kept = json.loads(file.read_text())
    assert (sample["row"], kept["row"]) == ("sample_demo_10", "bytes_kept")
    assert 0.1 < sample["ratio_low"] <= sample["ratio"] <= sample["ratio_high"] < 10
    assert sample["ratio"] == pytest.approx(sample["ours_seconds"] / sample["other_seconds"], rel=0.5)
    assert sample["rounds"] == 2
    assert sample["versions"]["torch"].startswith("2.13.0")
    assert "cores" in sample["processor"]
    assert min(sample["ours_gflops"], sample["other_gflops"]) > 1
    assert sample["busy_after"] >= 0
    assert kept["ratio"] == pytest.approx(39_424 / 66_390_016)
    table = [line.split(" | ")[0] for line in done.stdout.splitlines() if line.startswith("| `")]
    assert table == ["| `sample_demo_10`", "| `bytes_kept`"]


def test_rows_of_a_busy_machine_are_not_printed():
    assert machine.refusal(0.1, 0.29) is None
    assert machine.refusal(None, None) is None
    assert "0.31 after" in machine.refusal(0.1, 0.31)
    assert "1.50 before" in machine.refusal(1.5, 0.0)


def test_busy_cores_are_counted():
    line = "cpu  100 20 30 9000 50 4 6 7 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n"
    assert machine.busy_ticks(line) == 167  # without idle and waiting for disks
    assert machine.cores_busy(0.05) >= 0


def test_unknown_row():
    done = bench("--rows", "unet_sd15,sample_demo")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("bench.py: error: no row unet_sd15; there are unet_sd14,")


def test_sides_of_a_gpu_on_a_tiny_model(random_model):
    """The calls of GPU rows, on the CPU and in float32, where both sides compute the same."""
    settings = {"folder": str(random_model), "size": 8, "dtype": "float32", "prompts": 2}
    sides = Worker("ours:unet", settings | {"calls": ("pair", "detector")}), Worker("peer:unet", settings)
    pairs = [worker.ask("run", "pair") and worker.ask("result", "pair") for worker in sides]
    ours = pairs[0][0]
    assert ours.shape == pairs[1].shape == (4, 8, 8, 4)
    np.testing.assert_allclose(ours, pairs[1], atol=1e-4 * np.abs(pairs[1]).max())
    assert sides[0].ask("run", "detector") > 0
    assert sides[0].ask("compile_seconds", "pair") > 0
    assert [worker.ask("device_bytes", "pair") for worker in sides] == [None, None]
    for worker in sides:
        worker.stop()
    assert {row.dtype for row in GPU_ROWS.values()} == {"bfloat16"}
    assert not GPU_ROWS.keys() & ROWS.keys()


def test_a_side_that_fails_says_why():
    with pytest.raises(InputError, match="nowhere"):
        Worker("ours:unet", {"folder": "nowhere", "size": 64, "calls": ("pair",)})
