"""Runs that errors, signals, kills, a full disk and damage interrupt: what is made is kept, and they go on."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from python_device import Job, Scores, contents, counting, failing, fill, jobs, manifest_of, score

from memattn_jax import InputError
from memattn_jax.storage import Store


def test_an_interrupted_run_says_so(tmp_path):
    with pytest.raises(InputError):
        fill(tmp_path, 100, source=failing(38, InputError("damaged")))
    manifest, there = manifest_of(tmp_path), contents(tmp_path)
    assert manifest["complete"] is False
    assert {shard["file"]: shard["rows"] for shard in manifest["shards"]} == {n: len(r) for n, r in there.items()}
    seen = []

    def start(batch: list[Job]) -> Scores:
        seen.append(manifest_of(tmp_path)["complete"])  # what a kill would leave
        return Scores(score([job.text for job in batch]))

    fill(tmp_path, 120, start=start)
    assert not any(seen)
    assert manifest_of(tmp_path)["complete"]


@pytest.mark.parametrize("error", [InputError("line 38 is not CSV"), KeyboardInterrupt()], ids=["bad file", "Ctrl-C"])
def test_rows_made_before_an_error_are_kept(tmp_path, undisturbed_shards, error):
    with pytest.raises(type(error)):
        fill(tmp_path, 100, source=failing(38, error))
    kept = [row for shard in contents(tmp_path).values() for row in shard]
    assert 24 <= len(kept) <= 36  # but for the batches that were still on the device
    assert kept == [row for shard in undisturbed_shards.values() for row in shard][: len(kept)]
    fill(tmp_path, 100)
    assert contents(tmp_path) == undisturbed_shards


def test_sigterm_keeps_what_is_made(tmp_path, undisturbed_shards, capsys):
    calls: list[int] = []

    def start(batch: list[Job]) -> Scores:
        if len(calls) == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return counting(calls)(batch)

    _, whole = fill(tmp_path, 100, start=start)
    assert not whole
    assert len(calls) == 7  # the batch in hand is finished, none is begun
    made = [row for shard in contents(tmp_path).values() for row in shard]
    assert len(made) == 28
    assert json.loads(capsys.readouterr().err.splitlines()[-1])["event"] == "stopped"
    fill(tmp_path, 100, start=counting(calls))
    assert sum(calls) == sum(job.error is None for job in jobs(100))  # nothing was made twice
    assert contents(tmp_path) == undisturbed_shards


def test_ctrl_c_keeps_what_is_made_and_says_so(tmp_path, undisturbed_shards, capfd):
    calls: list[int] = []

    def start(batch: list[Job]) -> Scores:
        if len(calls) == 6:
            os.kill(os.getpid(), signal.SIGINT)
        return counting(calls)(batch)

    with pytest.raises(KeyboardInterrupt) as stopped:
        fill(tmp_path, 100, start=start)
    assert "28 rows" in str(stopped.value)
    assert str(tmp_path) in str(stopped.value)
    assert len([row for shard in contents(tmp_path).values() for row in shard]) == 28
    assert "Ctrl-C again stops at once" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    fill(tmp_path, 100, start=counting(calls))
    assert sum(calls) == sum(job.error is None for job in jobs(100))  # nothing was made twice
    assert contents(tmp_path) == undisturbed_shards


def test_a_second_ctrl_c_does_not_wait_for_the_device(tmp_path):
    """The rows of batches that are done are kept even so."""
    program = f"""
import os, signal, sys, threading, time
from dataclasses import dataclass
sys.path.insert(0, {str(Path(__file__).parent)!r})
import python_device
from memattn_jax.commands import command as commands

@dataclass
class Options:
    def check(self): pass

class Slow(python_device.Scores):
    def fetch(self):
        for _ in range(2):
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(300)

def main(options):
    calls = []
    def start(batch):
        calls.append(0)
        scores = python_device.score([job.text for job in batch])
        return (Slow if len(calls) == 4 else python_device.Scores)(scores)
    python_device.fill({str(tmp_path)!r}, 100, start=start)

commands.run_command("verb", Options, main, alone=True)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 130, done.stderr
    kept = len([row for shard in contents(tmp_path).values() for row in shard])
    assert kept == 12
    last = done.stderr.splitlines()[-1]
    assert last.startswith("interrupted: ")
    assert "12 rows" in last
    assert str(tmp_path) in last
    assert "Traceback" not in done.stderr


def test_an_interrupt_before_the_run_says_so(tmp_path):
    """Also in the middle of an import, where modules run code by exec and Python would end by the signal itself."""
    (tmp_path / "verb.py").write_text("""
from dataclasses import dataclass
from memattn_jax.commands.command import run_command

@dataclass
class Options:
    def check(self):
        exec("raise KeyboardInterrupt")

run_command("verb", Options, print, "nothing is lost")
""")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-m", "verb"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stderr) == (130, "interrupted: nothing is lost\n")


def test_rows_are_written_once_in_a_while(tmp_path, monkeypatch):
    """Not only when a shard is full."""
    from memattn_jax.runs import table as module

    monkeypatch.setattr(module, "FLUSH_SECONDS", 0.0)
    seen: list[int] = []

    def start(batch: list[Job]) -> Scores:
        seen.append(sum(map(len, contents(tmp_path).values())))
        return counting([])(batch)

    fill(tmp_path, 32, start=start)
    assert seen == [0, 0, 4, 8, 12, 16, 20, 24]


@pytest.mark.parametrize("damage", ["truncated", "a bit", "empty", "another run's"])
def test_a_damaged_shard_is_made_again(tmp_path, undisturbed_shards, damage):
    fill(tmp_path, 100)
    path = tmp_path / "00006.parquet"
    content = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "a bit":
        middle = 60  # in the first column's data
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :])
    else:
        fill(tmp_path / "other", 100, identity={"model": "n"})
        path.write_bytes((tmp_path / "other" / path.name).read_bytes())
    if damage == "another run's":
        fill(tmp_path, 100)
    else:
        with pytest.warns(UserWarning, match=r"00006\.parquet"):
            fill(tmp_path, 100)
    assert contents(tmp_path) == undisturbed_shards


def test_a_full_disk(tmp_path, undisturbed_shards, monkeypatch):
    """Whatever was written stays whole, the error says what failed, and the same command goes on."""
    whole = Store.write
    room = [6000]

    def write(self: Store, name: str, content: bytes) -> None:
        room[0] -= len(content)
        if room[0] < 0:
            raise OSError(f"{name}: not written (No space left on device); what was written before is whole")
        whole(self, name, content)

    monkeypatch.setattr(Store, "write", write)
    with pytest.raises(OSError, match="No space left on device"):
        fill(tmp_path, 100)
    made = contents(tmp_path)
    assert 1 <= len(made) < len(undisturbed_shards)
    assert made == {name: undisturbed_shards[name] for name in made}
    monkeypatch.undo()
    fill(tmp_path, 100)
    assert contents(tmp_path) == undisturbed_shards


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    store = Store(tmp_path)
    store.write("a.txt", b"old")

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=r"a\.txt: .*No space left on device"):
        store.write("a.txt", b"new")
    monkeypatch.undo()
    assert store.read("a.txt") == b"old"
    assert store.names() == ["a.txt"]


KILLS = 10


@pytest.mark.slow
def test_killed_at_any_moment(tmp_path, undisturbed_shards):
    """SIGKILL at random points of unfinished runs, each gone on with until it is whole; then another is begun.

    Every file is whole at all times, and every table comes out as the undisturbed one.
    """
    worker = f"""
import contextlib, sys, tempfile, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
from memattn_jax.runs import table
table.FLUSH_SECONDS = 0.02
import python_device
def start(batch):
    time.sleep(0.01)
    return python_device.Scores(python_device.score([job.text for job in batch]))
with tempfile.TemporaryDirectory() as elsewhere, contextlib.redirect_stdout(sys.stderr):
    python_device.fill(elsewhere + "/first", 1, start=start)  # imports what it needs
    begun = time.perf_counter()
    python_device.fill(elsewhere + "/second", 100, start=start)
print(time.perf_counter() - begun, flush=True)
python_device.fill(sys.argv[1], 100, start=start)
"""
    chance = random.Random(0)
    killed = tables = 0
    while killed < KILLS:
        folder = tmp_path / str(tables)
        process = subprocess.Popen(
            [sys.executable, "-c", worker, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert process.stdout is not None
        undisturbed_seconds = float(process.stdout.readline())  # of this machine
        time.sleep(chance.uniform(0, undisturbed_seconds))
        process.kill()
        by_us = process.wait() == -signal.SIGKILL
        process.stdout.close()
        found = contents(folder)
        for name, rows in found.items():
            assert rows == undisturbed_shards[name][: len(rows)]
        if found == undisturbed_shards:
            tables += 1
        else:
            killed += by_us
    assert tables > 1
    fill(folder, 100)
    assert contents(folder) == undisturbed_shards
