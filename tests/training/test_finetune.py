"""The command: a run, an interrupted run that must equal it, and bad input."""

import contextlib
import dataclasses
import functools
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import finetune_twice
import jax
import jax.numpy as jnp
import micro
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from memattn_jax import InputError, StableDiffusion, pipeline
from memattn_jax.commands.command import run_command
from memattn_jax.commands.finetune import Options, main
from memattn_jax.report import plots
from memattn_jax.training import loop
from memattn_jax.training.gate import Thresholds
from memattn_jax.training.loop import Checkpoints
from memattn_jax.training.settings import TrainSettings
from memattn_jax.training.start import start

pytestmark = pytest.mark.slow

STEPS = 12
OPTIONS = f"--steps {STEPS} --batch-size 4 --learning-rate 1e-3 --gate entropy --gate-quantile 0.5".split()
OPTIONS += ["--gate-bins", "1", "--ema-decay", "0.9", "--checkpoint-every", "4", "--train-text-encoder"]


@pytest.fixture(scope="module", autouse=True)
def one_program():
    """Equal settings give the same optimizer here, and so the compiled step of the run before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainSettings, "optimizer", functools.cache(TrainSettings.optimizer))
        yield


@pytest.fixture(scope="module")
def inputs(random_model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finetune")
    micro.write_model(folder / "model", random_model, unet=micro.WITHOUT_MIDDLE)
    micro.write_pictures(folder / "data")
    micro.write_pictures(folder / "clean", 6)
    return folder


def command(inputs: Path, out: Path, *more: object) -> list[str]:
    base = [sys.executable, "-m", "memattn_jax.finetune", "--model", inputs / "model", "--data", inputs / "data"]
    return [*map(str, [*base, "--out", out, *OPTIONS, *more])]


def finetune(inputs: Path, out: Path, *more: object) -> tuple[int, str, str]:
    """The command in this process, which keeps the programs: exit status, standard output and standard error."""
    printed, errors = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed), redirect_stderr(errors):
        patch.setattr(sys, "argv", command(inputs, out, *more)[2:])
        with pytest.raises(SystemExit) as stopped:
            run_command("finetune", Options, main)
    return stopped.value.code or 0, printed.getvalue(), errors.getvalue()


def metrics(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


SAMPLES = ("--sample-every", "6", "--sample-prompts", "the a", "b")


@pytest.fixture(scope="module")
def whole(inputs) -> Path:
    """A run that nothing interrupted."""
    out = inputs / "whole"
    status, printed, errors = finetune(inputs, out, *SAMPLES)
    assert status == 0, errors
    for line in ("usable pairs: 12; skipped: 0", f"{STEPS} steps; the model is in {out / 'model'}"):
        assert f"{line}\n" in printed
    first = json.loads(next(line for line in errors.splitlines() if line.startswith('{"time"')))
    assert (first["event"], first["step"], first["steps"]) == ("training", 1, STEPS)  # once the step is compiled
    return out


def test_what_a_run_leaves(whole, inputs):
    rows = metrics(whole)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert all((row["gradient_norm"] > 0) == (row["kept"] > 0) for row in rows)  # a batch may be gated whole
    assert rows[0]["kept"] == 1.0  # the window has seen nothing
    assert min(row["kept"] for row in rows) < 1.0
    before, after = (StableDiffusion.from_pretrained(path) for path in (inputs / "model", whole / "model"))
    for part in ("unet", "text_encoder"):
        old, new = (next(iter(vars_of(getattr(sd, part)))) for sd in (before, after))
        assert abs(old - new).max() > 1e-4
    assert abs(next(iter(vars_of(before.vae))) - next(iter(vars_of(after.vae)))).max() == 0
    with Image.open(whole / "samples" / "000012.png") as grid, Image.open(whole / "training.png") as plot:
        assert grid.size == (4 * 8, 2 * 8)
        assert plot.size == (960, 840)


def vars_of(module):
    from memattn_jax.checkpoints.names import leaves

    return (leaf.param[...] for leaf in leaves(module))


@contextlib.contextmanager
def asked_to_stop_after(number: int):
    """This process gets SIGTERM once that step is written."""
    train = loop.train

    def asked(*args, callbacks, **settings):
        def step(done, *more) -> None:
            callbacks.step(done, *more)
            if done == number:
                signal.raise_signal(signal.SIGTERM)

        return train(*args, callbacks=callbacks._replace(step=step), **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train", asked)
        yield


def refused_then_killed(inputs: Path, out: Path, rows: int) -> str:
    """What a process prints that may write no checkpoint, then may, and is killed after so many rows."""
    arguments = [sys.executable, finetune_twice.__file__, *command(inputs, out)[3:]]
    environment = os.environ | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "inf"}  # nor may its cache grow
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process = subprocess.Popen(arguments, text=True, env=environment, **both)
    while process.poll() is None and len(metrics(out)) < rows:
        time.sleep(0.005)
    process.kill()
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL, printed
    return printed


def resumed(printed: str) -> list[int]:
    return [int(step) for step in re.findall(r"^resuming after step (\d+) of 12, from ", printed, re.MULTILINE)]


def test_an_interrupted_run_goes_on_with_the_same_losses(whole, inputs):
    """Asked to stop twice, then refused a write halfway, then killed without being asked, then left to end."""
    out = inputs / "interrupted"
    for stopped in (1, 2):  # the second compiles the step of a resumed run, which the process below finds
        with asked_to_stop_after(stopped):
            status, printed, errors = finetune(inputs, out)
        assert status == 0, errors
        assert "the same command resumes there" in printed
        assert not (out / "model").exists()
        assert len(metrics(out)) == stopped

    printed = refused_then_killed(inputs, out, 5)
    (line,) = (line for line in printed.splitlines() if line.startswith("status 2 error: "))
    assert "step 4 was not written" in line
    assert f"step {stopped} is intact" in line
    assert resumed(printed) == [stopped, stopped]
    reached = len(metrics(out))
    assert 5 <= reached < STEPS

    status, printed, errors = finetune(inputs, out)
    assert status == 0, errors
    assert resumed(printed) == [reached // 4 * 4]
    assert metrics(out) == metrics(whole)
    one, other = (path / "model" / "unet" / "diffusion_pytorch_model.safetensors" for path in (out, whole))
    assert one.read_bytes() == other.read_bytes()


def test_other_settings_are_refused_and_named(whole, inputs):
    status, _, errors = finetune(inputs, whole, "--seed", "7", "--steps", "20")
    assert status == 2
    assert errors.startswith(f"error: {whole} ")
    assert "steps 12 is now 20" in errors
    assert "seed 0 is now 7" in errors


@pytest.fixture
def small(inputs):
    """A state and the checkpoints of an empty folder."""
    sd = StableDiffusion.from_pretrained(inputs / "model")
    return start(sd, TrainSettings())[0]


def test_a_full_disk_keeps_the_last_good_checkpoint(small, tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(4, dataclasses.replace(small, step=jnp.int32(4)))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    message = r"step 8 .*\d+ bytes needed on the disk, 1000 free.* step 4 "
    with pytest.raises(OSError, match=message):
        checkpoints.save(8, dataclasses.replace(small, step=jnp.int32(8)))
    restored = Checkpoints(tmp_path).restore(small)
    assert restored.step == 4
    jax.tree.map(np.testing.assert_array_equal, restored.params, small.params)


BAD = {
    "model": (["--model", "nowhere"], "model: nowhere"),
    "data": (["--data", "nowhere"], "--data nowhere: "),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_2(inputs, tmp_path, monkeypatch, case):
    options, message = BAD[case]
    monkeypatch.chdir(tmp_path)
    status, _, errors = finetune(inputs, tmp_path / "out", *options)
    assert status == 2
    (line,) = errors.splitlines()
    assert line.startswith("error: ")
    assert message in line


@pytest.fixture
def untrained(monkeypatch):
    """`train` as a function that only notes what it was given, and makes no step."""
    given = []

    def note(state, setup, batches, **settings):
        given.append(state)
        settings["callbacks"].start(0)
        return state, True

    monkeypatch.setattr(loop, "train", note)
    monkeypatch.setattr(plots, "plot_training", lambda *_: None)
    return given


def test_a_fitted_gate(inputs, tmp_path, untrained):
    """Its thresholds are there before the first step: half of the clean pairs lie below them."""
    status, _, errors = finetune(inputs, tmp_path / "out", "--gate-reference", inputs / "clean")
    assert status == 0, errors
    (state,) = untrained
    assert isinstance(state.gate, Thresholds)
    assert 0 < float(state.gate.values[0]) < np.log(77)


def kinds_of(folder: Path) -> set[str]:
    return {str(array.dtype) for array in load_file(next(folder.glob("*.safetensors"))).values()}


def test_weights_are_float32_where_models_are_bfloat16_by_default(inputs, tmp_path, untrained, monkeypatch, capsys):
    """As on GPUs and TPUs."""
    monkeypatch.setattr(pipeline, "default_dtype", lambda: "bfloat16")
    settings = TrainSettings(batch_size=1, ema_decay=0.9, gate="entropy", dtype="bfloat16")
    main(Options(model=str(inputs / "model"), data=inputs / "data", out=tmp_path, settings=settings))
    leaves = jax.tree.leaves(untrained[0])
    assert {str(leaf.dtype) for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)} == {"float32"}
    assert {kind for part in ("unet", "vae") for kind in kinds_of(tmp_path / "model" / part)} == {"float32"}
    told = capsys.readouterr().out
    assert "usable pairs: 12; skipped: 0\n" in told
    assert (
        "1000 steps of batch size 1, each pair seen about 83.3 times, learning rate 1e-05, the entropy gate at " in told
    )
    assert "computed in bfloat16, parameters in float32\n" in told


def test_a_run_is_not_resumed_with_another_model(inputs, tmp_path, untrained):
    """At the same place; the same one elsewhere is the same."""
    folder = shutil.copytree(inputs / "model", tmp_path / "model")
    options = Options(model=str(folder), data=inputs / "data", out=tmp_path / "out")
    main(options)
    main(dataclasses.replace(options, model=str(inputs / "model")))
    path = next((folder / "vae").glob("*.safetensors"))
    save_file({name: array + 1 for name, array in load_file(path).items()}, path)
    with pytest.raises(InputError, match=r"other settings: model '\w+' is now '\w+'"):
        main(options)


def test_a_run_is_not_resumed_with_other_data(inputs, tmp_path, untrained, capsys):
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(inputs / "data", data)
    rows = (data / "metadata.jsonl").read_text().splitlines(keepends=True)
    rows[0] = rows[0].replace('"the a"', "null")
    (data / "metadata.jsonl").write_text("".join(rows) + json.dumps({"file_name": "1.png", "text": ""}))
    options = Options(model=str(inputs / "model"), data=data, out=out)
    main(options)
    told = capsys.readouterr().out
    assert "usable pairs: 12; skipped: 1\n  1 skipped, no caption (null): line 1, 0.png\n" in told
    assert "\npairs with an empty caption: 1; " in told
    main(dataclasses.replace(options, data=Path(shutil.move(data, tmp_path / "moved"))))  # the same wherever it lies
    (tmp_path / "moved" / "metadata.jsonl").write_text("".join(reversed(rows)))
    with pytest.raises(InputError, match=r"data '12 pairs, \w+' is now '11 pairs, "):
        main(dataclasses.replace(options, data=tmp_path / "moved"))
    (out / "settings.json").write_text("{")
    with pytest.raises(InputError, match=r"settings\.json"):
        main(dataclasses.replace(options, data=tmp_path / "moved"))
