"""The script that compares gates: its rows, the share that the control drops, the table, and that it resumes."""

import numpy as np
import pytest
from measure_gates import BATCH, SHARE, Pairs, batches, measure, summarize

from memattn_jax.runs.parts import Part, Parts
from memattn_jax.storage import Store

STOPPED = {"none": 0.0, "noise_norm": 0.1, "loss": 0.4, "random": 0.4}


def result(gate: str, near: float) -> dict:
    return {
        "stopped": STOPPED[gate],
        "stopped_copies": STOPPED[gate] / 2,
        "stopped_others": 0.0,
        "correlations": [[near, near], [near / 2, near / 2]],
        "objects": [1.0, 0.5, 0.0],
    }


def test_rows_are_copies_and_pairs_that_occur_once():
    copied = Pairs(np.zeros((3, 2, 2, 3), np.uint8), -np.ones((3, 4), np.int32))
    once = Pairs(np.ones((400, 2, 2, 3), np.uint8), np.arange(1600, dtype=np.int32).reshape(400, 4))
    made = [list(batches(copied, once, seed, 40)) for seed in (0, 0, 1)]
    for batch, copies in made[0]:
        np.testing.assert_array_equal(batch.input_ids[:, 0] < 0, copies)
        np.testing.assert_array_equal(batch.pictures[:, 0, 0, 0] == 0, copies)
    ids = [np.concatenate([batch.input_ids[~copies, 0] for batch, copies in run]) for run in made]
    assert len(set(ids[0].tolist())) == len(ids[0])
    np.testing.assert_array_equal(ids[0], ids[1])
    assert np.mean([copies for _, copies in made[0]]) == pytest.approx(SHARE, abs=0.1)
    assert any((first[1] != other[1]).any() for first, other in zip(made[0], made[2], strict=True))
    assert len(made[0][0][1]) == BATCH


def test_the_table():
    gates = {"none": 0.95, "loss": 0.5, "random": 0.95}
    runs = {(gate, seed): result(gate, near) for gate, near in gates.items() for seed in (0, 1)}
    lines = [line.split(" | ") for line in summarize(runs).splitlines()]
    assert [line[0] for line in lines[2:]] == ["| none", "| loss", "| random"]
    assert lines[2][1].startswith("50.0 % (")
    assert lines[3][1].startswith("0.0 % (0 to ")
    assert lines[2][2].endswith("(0.475 to 0.950)")
    assert [line[3] for line in lines[2:]] == ["0.000 (0.000 to 0.000)", "0.338 (0.225 to 0.450)", ""]
    assert lines[2][4] == "50.0 % (0 to 100)"
    assert lines[3][5] == "40.0 %"


def test_the_control_drops_what_the_gate_that_drops_most_does(tmp_path, monkeypatch):
    ran = []

    def run(study, gate, seed, fitted, quantile):
        ran.append((gate, seed, quantile))
        return Part(result(gate, 0.5), {})

    monkeypatch.setattr("measure_gates.run", run)
    names = ["none", "loss", "random"]
    text = measure(None, Parts(Store(tmp_path), {"half": "report"}, overwrite=False), names, 2)
    assert ran == [(name, seed, 0.6 if name == "random" else None) for seed in (0, 1) for name in names]
    assert (tmp_path / "gates.md").read_text() == text
    again = measure(None, Parts(Store(tmp_path), {"half": "report"}, overwrite=False), names, 2)
    assert (again, len(ran)) == (text, 6)
