"""The loop around a step that computes nothing: stops, resumption, and what is not finite."""

import json
import os
import shutil
import signal

import jax.numpy as jnp
import numpy as np
import pytest

from memattn_jax import InputError
from memattn_jax.training import loop
from memattn_jax.training.settings import TrainSettings
from memattn_jax.training.step import TrainState


@pytest.fixture
def run(tmp_path, monkeypatch):
    """`train` for ten steps; `during(step)` is called while a batch is read."""

    def update(state, setup, rows):
        state = TrainState(state.step + 1, {"w": state.params["w"] + rows.pictures[0]}, None, None, None)
        rows = jnp.ones(1)
        loss = jnp.where(state.step == 7, setup["seventh"], 1.0)
        return state, {"loss": loss, "gradient_norm": rows[0], "kept": rows[0], "score": rows}

    monkeypatch.setattr(loop, "train_step", update)

    def train(during=lambda step: None, seventh=1.0, **settings):
        def batches(first):
            for step in range(first + 1, 100):
                during(step)
                yield {"pictures": np.full(1, step, np.float32), "input_ids": np.zeros(1)}

        state = TrainState(jnp.int32(0), {"w": jnp.float32(0)}, None, None, None)
        out = tmp_path / "out"
        out.mkdir(exist_ok=True)
        return loop.train(
            state, {"seventh": jnp.float32(seventh)}, batches, steps=10, out=out, checkpoint_every=4, **settings
        )

    return train


def steps_of(out) -> list[int]:
    return [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_ctrl_c_saves_and_resumes(run, tmp_path, capfd):
    with pytest.raises(KeyboardInterrupt):
        run(lambda step: os.kill(os.getpid(), signal.SIGINT) if step == 6 else None)
    assert loop.last_checkpoint(tmp_path / "out") == 6
    assert "Ctrl-C again stops at once" in capfd.readouterr().err
    begun = []
    state, finished = run(callbacks=loop.Callbacks(begun.append))
    assert (begun, finished, float(state.params["w"])) == ([6], True, sum(range(11)))
    assert steps_of(tmp_path / "out") == list(range(1, 11))


def test_a_second_ctrl_c_stops_at_once(run, tmp_path):
    def twice(step):
        if step == 6:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(twice)
    assert loop.last_checkpoint(tmp_path / "out") == 4
    with (tmp_path / "out" / "metrics.jsonl").open("a") as log:
        log.write('{"step": 6, "lo')  # as a process leaves it that is killed while it writes
    assert run()[1]
    assert steps_of(tmp_path / "out") == list(range(1, 11))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_run_that_diverges_stops_and_keeps_what_is_finite(run, tmp_path, value):
    with pytest.raises(InputError, match=rf"^step 7: loss {value}, gradient norm 1\.0: "):
        run(seventh=value)
    assert loop.last_checkpoint(tmp_path / "out") == 4
    assert loop.last_checkpoint(tmp_path / "nowhere") is None


def test_a_step_is_saved_before_what_may_fail_after_it(run, tmp_path):
    def sample(step, line, state):
        if step == 4:
            raise MemoryError

    with pytest.raises(MemoryError):
        run(callbacks=loop.Callbacks(step=sample))
    assert loop.last_checkpoint(tmp_path / "out") == 4


def test_a_damaged_checkpoint_is_named_and_the_one_before_goes_on(run, tmp_path):
    def damaged(manager, step, args):
        raise ValueError("NOT_FOUND: a file of arrays\nmore of it")

    run()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("orbax.checkpoint.CheckpointManager.restore", damaged)
        with pytest.raises(InputError, match=r"checkpoints/10: cannot be read \(.*remove it"):
            run()
    shutil.rmtree(tmp_path / "out/checkpoints/10")
    state, finished = run()
    assert (finished, float(state.params["w"])) == (True, sum(range(11)))


def test_checkpoints_without_their_settings_are_refused(run, tmp_path):
    run()
    with pytest.raises(InputError, match=r"holds checkpoints without the settings\.json"):
        loop.check_settings(tmp_path / "out", TrainSettings(), {})
