"""`memattn <verb>` and `python -m memattn_jax.<verb>`: the list of verbs, and how a process that runs one ends."""

import importlib
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import memattn_jax
from memattn_jax.commands.verbs import VERBS, memattn


def python(*arguments: str, **settings) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, timeout=300, **settings
    )


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_without_a_verb_the_verbs_are_listed(arguments):
    """One line each, without JAX."""
    done = python("-X", "importtime", "-m", "memattn_jax", *arguments)
    assert done.returncode == 0
    listed = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")]
    assert listed == list(VERBS)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "memattn_jax.commands.verbs" in imported
    assert not imported & {"jax", "tyro", "numpy"}


def test_an_unknown_verb_is_answered_with_the_nearest():
    done = python("-m", "memattn_jax", "detcet")
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert "'detcet'" in line
    assert "did you mean 'detect'?" in line
    assert all(verb in line for verb in VERBS)


def test_every_command_has_a_verb_and_a_module():
    package = Path(memattn_jax.__file__).parent
    commands = {path.stem for path in (package / "commands").glob("*.py") if "\ndef cli(" in path.read_text("utf-8")}
    assert commands == set(VERBS)
    for verb in VERBS:
        of_a_package = ".__main__" if (package / verb).is_dir() else ""
        thin = importlib.import_module(f"memattn_jax.{verb}{of_a_package}")
        command = importlib.import_module(f"memattn_jax.commands.{verb}")
        assert (thin.Options, thin.main, thin.cli) == (command.Options, command.main, command.cli)


def test_the_console_script_is_the_same():
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    module, name = project["scripts"]["memattn"].split(":")
    assert getattr(importlib.import_module(module), name) is memattn
    by_module, by_verb = (
        python("-m", *start, "--help") for start in (["memattn_jax.detect"], ["memattn_jax", "detect"])
    )
    assert (by_verb.returncode, by_verb.stdout) == (0, by_module.stdout)
    assert "--calibrate" in by_verb.stdout


@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize(
    "arguments",
    [
        ["memattn_jax"],
        ["memattn_jax", "nonsense"],
        ["memattn_jax.detect", "--help"],
        ["memattn_jax.detect", "--nonsense"],
    ],
)
def test_a_reader_that_stops_reading_ends_a_command_quietly(tmp_path, arguments, buffered):
    """As `head` does; standard error goes to the same pipe where the command writes there."""
    reader, writer = os.pipe()
    os.close(reader)
    other = tmp_path / "other"
    wrong = arguments[-1].endswith("nonsense")
    with other.open("w") as file, os.fdopen(writer, "w") as pipe:
        streams = {"stdout": file, "stderr": pipe} if wrong else {"stdout": pipe, "stderr": file}
        environment = os.environ | {"PYTHONUNBUFFERED": "" if buffered else "1"}
        command = [sys.executable, "-m", *arguments]
        done = subprocess.run(command, check=False, env=environment, timeout=300, **streams)
    assert done.returncode == 141
    assert other.read_text() == ""


def test_another_broken_pipe_is_an_error(monkeypatch, capsys):
    """Of a connection, say: it is reported as any other that fails."""
    from memattn_jax.commands import detect

    def main(options):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(detect, "main", main)
    monkeypatch.setattr(sys, "argv", ["detect", "a prompt"])
    with pytest.raises(SystemExit) as stopped:
        detect.cli()
    assert stopped.value.code == 2
    assert "Broken pipe" in capsys.readouterr().err


INTERRUPTED = """
import runpy, sys, threading, time
from memattn_jax.commands import detect

def main(options):
    threading.Thread(target=time.sleep, args=({seconds},)).start()  # as one that waits for the device
    raise KeyboardInterrupt

detect.main = main
sys.argv = {arguments!r}
"""


@pytest.mark.parametrize(
    ("module", "arguments"), [("memattn_jax.detect", ["a prompt"]), ("memattn_jax", ["detect", "a prompt"])]
)
def test_a_process_of_its_own_does_not_wait_for_threads(module, arguments):
    """`python -m memattn_jax.detect` and `memattn detect`, interrupted while a thread waits for the device."""
    program = INTERRUPTED.format(seconds=600, arguments=["memattn", *arguments])
    done = python("-c", f"{program}\nrunpy.run_module({module!r}, run_name='__main__')")
    assert done.returncode == 130
    (line,) = done.stderr.splitlines()
    assert line.startswith("interrupted: ")


def test_a_host_program_may_catch_the_exit():
    program = INTERRUPTED.format(seconds=1, arguments=["memattn", "a prompt"])
    host = "try:\n    detect.cli()\nexcept SystemExit as stopped:\n    print('exit status', stopped.code)"
    done = python("-c", f"{program}\n{host}")
    assert (done.returncode, done.stdout) == (0, "exit status 130\n")
