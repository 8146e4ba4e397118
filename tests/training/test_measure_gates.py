"""The script that compares gates: its rows, the share that controls drop, the table, and that it resumes."""

import numpy as np
import pytest
from measure_gates import BATCH, SHARE, Pairs, Study, batches, control, measure, summarize

from memattn_jax.runs.parts import Part, Parts
from memattn_jax.storage import Store

STOPPED = {"none": 0.0, "noise_norm": 0.1, "loss": 0.4}
STUDY = Study(None, None, "report", 170, 1e-3)


def result(stopped: float, near: float) -> dict:
    return {
        "stopped": stopped,
        "stopped_copies": stopped / 2,
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
    near = {"none": 0.95, "loss": 0.5, control("loss"): 0.95}
    stopped = STOPPED | {control("loss"): 0.4}
    runs = {(name, seed): result(stopped[name], value) for name, value in near.items() for seed in (0, 1)}
    lines = [line.split(" | ") for line in summarize(runs).splitlines()]
    assert [line[0] for line in lines[2:]] == ["| none", "| loss", "| random, as many as loss"]
    assert lines[2][1].startswith("50.0 % (")
    assert lines[3][1].startswith("0.0 % (0 to ")
    assert lines[2][2].endswith("(0.475 to 0.950)")
    assert [line[3] for line in lines[2:]] == ["", "0.338 (0.225 to 0.450)", ""]
    assert lines[2][4] == "50.0 % (0 to 100)"
    assert lines[3][5] == "40.0 %"


def test_each_gate_has_a_control_that_drops_as_many_rows(tmp_path, monkeypatch):
    ran = []

    def run(study, settings, fitted):
        ran.append((settings.gate, settings.seed, settings.gate_quantile))
        return Part(result(STOPPED.get(settings.gate, 0.0), 0.5), {})

    monkeypatch.setattr("measure_gates.run", run)
    monkeypatch.setattr("measure_gates.FITTED", ())
    names = ["none", "noise_norm", "loss"]
    text = measure(STUDY, Parts(Store(tmp_path), {"half": "report"}, overwrite=False), names, 2)
    gates = ["none", "noise_norm", "random", "loss", "random"]
    assert [(gate, seed) for gate, seed, _ in ran] == [(gate, seed) for seed in (0, 1) for gate in gates]
    assert [quantile for gate, _, quantile in ran if gate == "random"] == [0.9, 0.6] * 2
    assert (tmp_path / "gates.md").read_text() == text
    again = measure(STUDY, Parts(Store(tmp_path), {"half": "report"}, overwrite=False), names, 2)
    assert (again, len(ran)) == (text, 10)
