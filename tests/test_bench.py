"""The benchmark suite: what it prints and writes, on the rows that take seconds."""

import json
import os
import sys

import bench
import profile_rows
import pytest
from benchmark import machine
from benchmark.gpu_rows import GPU_ROWS
from benchmark.rows import ROWS, Row, Side
from benchmark.worker import Worker
from benchmark.xla_profile import kinds_of

from memattn_jax import InputError

pytestmark = pytest.mark.slow


def tiny_sides(folder):
    sizes = {"folder": str(folder.resolve()), "size": 8, "prompts": 2}
    return Side("ours:unet", sizes | {"calls": ("pair",)}, "pair"), Side("peer:unet", sizes, "pair")


def test_rows_and_file(random_model, tmp_path, monkeypatch, capsys):
    """A row whose sides are a tiny model's, which compute the same; that of a GPU differ in dtype and size alone."""
    rows = {
        "tiny": Row("a tiny UNet", *tiny_sides(random_model), 2, same=True, prompts=2),
        "broken": Row("none", *[Side("nowhere:unet", {}, "pair")] * 2, 2),
    }
    file = tmp_path / "bench.json"
    monkeypatch.setattr(bench, "ROWS", rows)
    monkeypatch.setattr(sys, "argv", ["bench.py", "--any-load", "--json", str(file)])
    monkeypatch.setattr(machine, "PAUSE", 0.1)
    for name in ("JAX_PLATFORMS", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.setenv(name, os.environ[name])  # which it sets, and which are put back afterwards
    with pytest.raises(SystemExit, match="1"):
        bench.main()
    tiny, kept = json.loads(file.read_text())
    assert [tiny["row"], kept["row"]] == ["tiny", "bytes_kept"]
    assert 0 < tiny["ratio_low"] <= tiny["ratio"] <= tiny["ratio_high"]
    assert tiny["ratio"] == pytest.approx(tiny["ours_seconds"] / tiny["other_seconds"], rel=0.9)
    assert (tiny["rounds"], tiny["prompts"]) == (2, 2)
    assert tiny["difference"] < 1e-3
    assert tiny["versions"]["torch"].startswith("2.13.0")
    assert "cores" in tiny["processor"]
    assert min(tiny["ours_gflops"], tiny["other_gflops"], tiny["ours_compile_seconds"]) > 0
    assert tiny["busy_after"] >= 0
    assert tiny["ours_device_bytes"] is tiny["other_device_bytes"] is None
    assert kept["ratio"] == pytest.approx(39_424 / 66_390_016)
    printed = capsys.readouterr()
    table = [line.split(" | ")[0] for line in printed.out.splitlines() if line.startswith("| `")]
    assert table == ["| `tiny`", "| `bytes_kept`"]
    assert "broken: failed" in printed.err


def test_a_profile_has_the_time_of_a_pair_by_kind(random_model, monkeypatch, capsys):
    """All of a tiny pair's kinds take time on both sides."""
    monkeypatch.setattr(profile_rows, "ROWS", {"tiny": Row("a tiny UNet", *tiny_sides(random_model), 2)})
    monkeypatch.setattr(profile_rows, "NAMES", ["tiny"])
    monkeypatch.setattr(os, "sched_setaffinity", lambda *_: None)  # of this process, whose other tests go on
    for name in ("JAX_PLATFORMS", "XLA_FLAGS"):
        monkeypatch.setenv(name, os.environ[name])
    monkeypatch.setattr(sys, "argv", ["profile_rows.py", "tiny"])
    profile_rows.main()
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| `")]
    assert [row[1] for row in rows] == ["convolution", "linear", "self-attention", "cross-attention", "other", "all"]
    for side in (2, 3):
        assert min(float(row[side]) for row in rows) > 0


def test_instructions_have_the_kind_of_their_innermost_scope():
    program = """%fused {
  ROOT %dot.1 = f32[2,2] dot(%a, %b), metadata={op_name="jit(f)/convolution/linear/dot_general"}
}

ENTRY %main {
  %while.3 = (f32[2]) while(%x), body=%b, metadata={op_name="jit(f)/linear/while"}
  %copy.1 = f32[2] copy(%x)
  %exp.2 = f32[2] exponential(%x), metadata={op_name="jit(f)/jvp(self_attention)/exp" stack_frame_id=3}
  ROOT %add.4 = f32[2] add(%x, %y), metadata={op_name="jit(f)/silu/add"}
}
"""
    kinds = {"dot.1": "linear", "copy.1": "linear", "exp.2": "self_attention", "add.4": "other"}
    assert kinds_of(program) == kinds


def test_rows_of_a_busy_machine_are_not_printed():
    assert machine.refusal(0.1, 0.29) is None
    assert machine.refusal(None, None) is None
    assert "0.31 after" in machine.refusal(0.1, 0.31)
    assert "1.50 before" in machine.refusal(1.5, 0.0)


def test_busy_cores_are_counted(monkeypatch):
    monkeypatch.setattr(machine, "PAUSE", 0.05)
    line = "cpu  100 20 30 9000 50 4 6 7 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n"
    assert machine.busy_ticks(line) == 167  # without idle and waiting for disks
    assert machine.cores_busy() >= 0


def test_unknown_row(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench.py", "--rows", "unet_sd15,sample_demo"])
    with pytest.raises(SystemExit, match="2"):
        bench.main()
    assert "no row unet_sd15; there are unet_sd14," in capsys.readouterr().err


def test_rows_of_a_gpu():
    assert {row.dtype for row in GPU_ROWS.values()} == {"bfloat16"}
    assert not GPU_ROWS.keys() & ROWS.keys()


def test_a_side_that_fails_says_why():
    with pytest.raises(InputError, match="nowhere"):
        Worker("ours:unet", {"folder": "nowhere", "size": 64, "calls": ("pair",)})
