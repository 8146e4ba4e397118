"""Tables that go on where they stopped, and the loop that fills them, with a device made of Python."""

import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from memattn_jax import InputError
from memattn_jax.errors import LIMIT
from memattn_jax.runs.progress import Progress
from memattn_jax.runs.refusal import differences, refusal
from memattn_jax.runs.run import batch_size, batches, fill_up, run
from memattn_jax.runs.stream import Overlap, asked_to_stop
from memattn_jax.runs.table import ShardedTable
from memattn_jax.storage import Store

SCHEMA = pa.schema([("row", pa.int64()), ("prompt", pa.string()), ("score", pa.float32()), ("error", pa.string())])
IDENTITY = {"model": "m", "settings": {"steps": 50, "thresholds": {"a": 0.1}}}


@dataclass(frozen=True)
class Job:
    text: str
    error: str | None = None


def jobs(count: int) -> list[Job]:
    return [Job(f"prompt {i}", "unreadable" if i % 13 == 5 else None) for i in range(count)]


@dataclass(frozen=True)
class Scores:
    values: list[float]

    def fetch(self) -> "Scores":
        return self


def score(texts: list[str]) -> list[float]:
    return [sum(map(ord, text)) / 7 for text in texts]


def describe(batch, scores):
    values = iter([] if scores is None else scores.values)
    return [
        {"row": n, "prompt": job.text, "score": None if job.error else next(values), "error": job.error}
        for n, job in batch
    ]


def fill(folder: str | Path, count: int, *, overwrite=False, identity=IDENTITY, start=None, source=None, **options):
    """A whole run; returns its table and whether it came to its end."""
    options = {"shard_rows": 16} | options
    table = ShardedTable(Store(folder), SCHEMA, identity, **options)
    table.claim({"versions": {"x": "1"}}, overwrite=overwrite)
    work = batches(table.missing(jobs(count) if source is None else source), 4, table.shard_rows)
    default = lambda batch: Scores(score([job.text for job in fill_up(batch, 4)]))  # noqa: E731
    progress = Progress("row", lambda: count, lambda row: row["prompt"])
    return table, run(table, work, start or default, describe, progress)


def contents(folder: Path) -> dict[str, list[dict]]:
    return {path.name: pq.read_table(path).to_pylist() for path in sorted(Path(folder).glob("*.parquet"))}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, list[dict]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    _, whole = fill(folder, 100)
    assert whole
    return contents(folder)


def test_shards_and_manifest(tmp_path, capsys):
    table, whole = fill(tmp_path / "a", 100)
    assert whole
    rows = [row for shard in contents(tmp_path / "a").values() for row in shard]
    assert [row["row"] for row in rows] == list(range(100))
    for row, job in zip(rows, jobs(100), strict=True):
        assert row["prompt"] == job.text
        assert row["error"] == job.error
        assert row["score"] == (None if job.error else pytest.approx(score([job.text])[0]))
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert manifest["identity"] == IDENTITY | {"shard_rows": 16}
    assert manifest["versions"] == {"x": "1"}
    assert (manifest["complete"], manifest["rows"], manifest["records"]) == (True, 100, 100)
    assert [(s["first_row"], s["rows"]) for s in manifest["shards"]] == [(16 * i, 16) for i in range(6)] + [(96, 4)]
    for shard in manifest["shards"]:
        assert pq.read_metadata(tmp_path / "a" / shard["file"]).num_rows == shard["rows"]
    assert list(table.rows(["row"])) == [{"row": i} for i in range(100)]
    metrics = json.loads(capsys.readouterr().err.splitlines()[-1])
    assert (metrics["event"], metrics["rows"], metrics["errors"]) == ("done", 100, 8)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [f"0000{i}.parquet" for i in range(7)] + [
        "manifest.json"
    ]


@pytest.mark.parametrize("processes", [2, 3, 10])
def test_any_number_of_processes_writes_the_same_files(tmp_path, undisturbed, processes):
    for process in reversed(range(processes)):  # as if the first were the last to finish
        fill(tmp_path, 100, process=process, processes=processes)
    assert contents(tmp_path) == undisturbed
    assert json.loads((tmp_path / "manifest.json").read_text())["rows"] == 100


def manifest_of(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


def test_the_manifest_tells_what_is_there(tmp_path):
    """Of several processes only the last to finish says that all is."""
    for process in (1, 0, 2):
        fill(tmp_path, 100, process=process, processes=3)
        manifest, there = manifest_of(tmp_path), contents(tmp_path)
        assert {shard["file"]: shard["rows"] for shard in manifest["shards"]} == {n: len(r) for n, r in there.items()}
        assert manifest["rows"] == sum(map(len, there.values()))
        assert manifest["complete"] == (process == 2) == (manifest["rows"] == manifest["records"])
    (tmp_path / "00003.parquet").write_bytes(b"")
    fill(tmp_path, 100, process=1, processes=3)
    assert not manifest_of(tmp_path)["complete"]


def test_a_process_that_ends_in_between_is_seen(tmp_path, monkeypatch):
    """Whichever of two writes its manifest last, the one that is left is true."""
    fill(tmp_path, 40, process=1, processes=2)
    write, ended = Store.write, []

    def late(self: Store, name: str, content: bytes) -> None:
        if name == "manifest.json" and b'"shards"' in content and not ended:
            ended.append(self)
            fill(tmp_path, 40, process=2, processes=3)
        write(self, name, content)

    monkeypatch.setattr(Store, "write", late)
    fill(tmp_path, 40, process=0, processes=3)
    assert manifest_of(tmp_path)["complete"]


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


def test_rows_beyond_the_prompts_are_refused(tmp_path):
    """The log is shorter than it was: its table would tell of prompts that are not in it."""
    fill(tmp_path, 100)
    for count in (80, 90):
        with pytest.raises(InputError, match=f"holds rows beyond the {count} prompts"):
            fill(tmp_path, count)
        assert not manifest_of(tmp_path)["complete"]
    for process in range(2):  # whose shards the first finds, the second drops
        fill(tmp_path, 60, process=process, processes=2, overwrite=True)
    assert manifest_of(tmp_path)["complete"]


def repeating(count: int) -> list[Job]:
    """Of 100 rows 20 different prompts, with errors between."""
    return [Job(f"prompt {i * i % 20}", "unreadable" if i % 13 == 5 else None) for i in range(count)]


def fill_distinct(folder: Path, count: int, start, stop: int | None = None):
    table = ShardedTable(Store(folder), SCHEMA, IDENTITY, shard_rows=16)
    table.claim({}, overwrite=False)
    source = repeating(count) if stop is None else chain(repeating(count)[:stop], failing(0, KeyboardInterrupt()))
    work = batches(table.missing(source, lambda job: job.text), 4, 16, twins=table.twins)
    return run(table, work, start, describe, Progress("row", None, lambda row: row["prompt"]))


def test_equal_prompts_are_computed_once_a_shard(tmp_path, capsys):
    """Each keeps its row, with its own error; batches are as full as they can be."""
    calls: list[int] = []
    fill_distinct(tmp_path / "a", 100, counting(calls))
    rows = [row for shard in contents(tmp_path / "a").values() for row in shard]
    for row, (number, job) in zip(rows, enumerate(repeating(100)), strict=True):
        value = None if job.error else pytest.approx(score([job.text])[0])
        assert row == {"row": number, "prompt": job.text, "score": value, "error": job.error}
    shards = [repeating(100)[first : first + 16] for first in range(0, 100, 16)]
    assert sum(calls) == sum(len({job.text for job in shard if job.error is None}) for shard in shards)
    metrics = json.loads(capsys.readouterr().err.splitlines()[-1])
    assert metrics["repeated"] == 100 - metrics["errors"] - sum(calls)


@pytest.mark.parametrize("stop", range(1, 40, 3))
def test_equal_prompts_of_an_interrupted_run(tmp_path, stop):
    """What is made after the interruption, in which batches, does not depend on it."""
    texts: list[tuple[str, ...]] = []

    def start(batch: list[Job]) -> Scores:
        texts.append(tuple(job.text for job in batch))
        return Scores(score([job.text for job in batch]))

    fill_distinct(tmp_path / "a", 48, start)
    whole, texts = texts, []
    with pytest.raises(KeyboardInterrupt):
        fill_distinct(tmp_path / "b", 48, start, stop)
    texts.clear()
    fill_distinct(tmp_path / "b", 48, start)
    assert contents(tmp_path / "b") == contents(tmp_path / "a")
    assert texts == whole[len(whole) - len(texts) :]


def test_a_run_goes_on_with_another_number_of_processes(tmp_path, undisturbed):
    fill(tmp_path, 100, process=1, processes=3)
    made = set(contents(tmp_path))
    fill(tmp_path, 100, process=0, processes=1)
    assert made == {"00001.parquet", "00004.parquet"}
    assert contents(tmp_path) == undisturbed


def counting(calls: list[int]):
    def start(batch: list[Job]) -> Scores:
        calls.append(len(batch))
        return Scores(score([job.text for job in batch]))

    return start


def test_a_run_that_is_there_makes_nothing(tmp_path, undisturbed):
    fill(tmp_path, 100)
    calls: list[int] = []
    _, whole = fill(tmp_path, 100, start=counting(calls))
    assert whole
    assert calls == []
    assert contents(tmp_path) == undisturbed


def test_more_prompts_are_added(tmp_path, undisturbed):
    fill(tmp_path, 88)  # 5.5 shards
    calls: list[int] = []
    fill(tmp_path, 100, start=counting(calls))
    assert sum(calls) == sum(job.error is None for job in jobs(100)[88:])
    assert contents(tmp_path) == undisturbed


def failing(rows: int, error: BaseException):
    """A source that ends badly."""
    yield from jobs(100)[:rows]
    raise error


@pytest.mark.parametrize("error", [InputError("line 38 is not CSV"), KeyboardInterrupt()], ids=["bad file", "Ctrl-C"])
def test_rows_made_before_an_error_are_kept(tmp_path, undisturbed, error):
    with pytest.raises(type(error)):
        fill(tmp_path, 100, source=failing(38, error))
    kept = [row for shard in contents(tmp_path).values() for row in shard]
    assert 24 <= len(kept) <= 36  # but for the batches that were still on the device
    assert kept == [row for shard in undisturbed.values() for row in shard][: len(kept)]
    fill(tmp_path, 100)
    assert contents(tmp_path) == undisturbed


def test_sigterm_keeps_what_is_made(tmp_path, undisturbed, capsys):
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
    assert contents(tmp_path) == undisturbed


def test_ctrl_c_keeps_what_is_made_and_says_so(tmp_path, undisturbed, capfd):
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
    assert contents(tmp_path) == undisturbed


def test_a_second_ctrl_c_does_not_wait_for_the_device(tmp_path):
    """The rows of batches that are done are kept even so."""
    program = f"""
import os, signal, sys, threading, time
from dataclasses import dataclass
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_runs
from memattn_jax.commands import command as commands

@dataclass
class Options:
    def check(self): pass

class Slow(test_runs.Scores):
    def fetch(self):
        for _ in range(2):
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(300)

def main(options):
    calls = []
    def start(batch):
        calls.append(0)
        scores = test_runs.score([job.text for job in batch])
        return (Slow if len(calls) == 4 else test_runs.Scores)(scores)
    test_runs.fill({str(tmp_path)!r}, 100, start=start)

commands.run_command("verb", Options, main, alone=True)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
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
def test_a_damaged_shard_is_made_again(tmp_path, undisturbed, damage):
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
    assert contents(tmp_path) == undisturbed


def test_a_full_disk(tmp_path, undisturbed, monkeypatch):
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
    assert 1 <= len(made) < len(undisturbed)
    assert made == {name: undisturbed[name] for name in made}
    monkeypatch.undo()
    fill(tmp_path, 100)
    assert contents(tmp_path) == undisturbed


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


def test_object_storage(undisturbed):
    """The same through fsspec's file system in memory, which stands for gs:// and s3://."""
    url = f"memory://{uuid.uuid4()}/scores"
    fill(url, 40)
    table, _ = fill(url, 100)
    assert list(table.rows()) == [row for shard in undisturbed.values() for row in shard]
    assert "manifest.json" in Store(url).names()
    with pytest.raises(InputError, match=r"nowhere://x.*memattn-jax\[remote\]"):
        Store("nowhere://x")


def test_refusals(tmp_path):
    fill(tmp_path / "a", 20)
    other = {"model": "n", "settings": {"steps": 4, "thresholds": {"b": 0.1}}}
    with pytest.raises(InputError) as refused:
        fill(tmp_path / "a", 20, identity=other)
    for part in (f"{tmp_path}/a", "model", "settings.steps 50 is now 4", "2 more", "--out", "--overwrite"):
        assert part in str(refused.value)
    with pytest.raises(InputError, match="shard_rows 16 is now 8"):
        fill(tmp_path / "a", 20, shard_rows=8)
    changed = jobs(20)
    changed[7] = Job("something else")
    with pytest.raises(InputError, match=r"row 7 .*'prompt 7'.*'something else'"):
        fill(tmp_path / "a", 20, source=changed)
    (tmp_path / "a" / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"00000\.parquet.* manifest\.json"):
        fill(tmp_path / "a", 20)
    (tmp_path / "a" / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match=r"manifest\.json.*damaged"):
        fill(tmp_path / "a", 20)
    _, whole = fill(tmp_path / "a", 10, identity=other, overwrite=True)
    assert whole
    assert list(contents(tmp_path / "a")) == ["00000.parquet"]
    assert len(contents(tmp_path / "a")["00000.parquet"]) == 10


def test_differences():
    assert differences({"a": 1, "b": {"c": [1], "d": 2}}, {"a": 1, "b": {"c": [1], "d": 3}}) == ["b.d 2 is now 3"]


def test_a_refusal_is_short():
    """Whatever the settings hold, and wherever the folder lies."""
    for part in ("out: ", "`detect`", "--out", "--overwrite"):
        assert part in refusal("out", {"command": "detect"}, {"command": "generate"})
    old = {f"a{'b' * 60}{i}": "\x1b" + "x" * 900 for i in range(40)}
    for folder in ("out", "gs://" + "f" * 900):
        text = refusal(folder, {"command": "detect"} | old, {"command": "detect"} | dict.fromkeys(old, 0))
        assert len(text) <= LIMIT
        assert text.isprintable()
        assert "--overwrite" in text


def test_batches_depend_on_numbers_alone():
    rows = list(enumerate("abcdefghijk"))
    whole = list(batches(rows, 3, 5))
    assert ["".join(job for _, job in batch) for batch in whole] == ["abc", "de", "fgh", "ij", "k"]
    assert list(batches(rows[5:], 3, 5)) == whole[2:]
    kinds = list(batches(rows[:3], 3, 5, kind=lambda job: job < "b"))
    assert kinds == [[(0, "a")], [(1, "b"), (2, "c")]]


def test_batch_size_reads_ahead_and_loses_nothing():
    size, rest = batch_size(iter("abc"), 8)
    assert (size, "".join(rest)) == (3, "abc")
    size, rest = batch_size(iter("abcdefghij"), 8)
    assert (size, "".join(rest)) == (8, "abcdefghij")


def test_the_device_has_its_next_batch_before_the_last_is_written():
    """Host and device work at the same time: the whole takes hardly longer than the device alone."""
    device, host, count = 0.03, 0.02, 20
    free = [0.0]

    def start(batch: int) -> float:
        time.sleep(host / 2)  # tokenizing
        free[0] = max(free[0], time.perf_counter()) + device
        return free[0]

    def fetch(ready: float) -> float:
        time.sleep(max(0.0, ready - time.perf_counter()))
        return ready

    overlap, begun = Overlap(), time.perf_counter()
    order = []
    for batch, _ in overlap(range(count), start, fetch):
        time.sleep(host / 2)  # writing
        order.append(batch)
    seconds = time.perf_counter() - begun
    assert order == list(range(count))
    assert seconds < count * device + 0.7 * count * host  # one after the other: device + host each
    assert overlap.device_share > 0.8


def test_a_device_that_waits_is_seen():
    overlap = Overlap()
    for _ in overlap(range(10), lambda batch: time.sleep(0.03), lambda started: time.sleep(0.01)):
        pass
    assert overlap.device_share < 0.6


def test_sigterm_outside_does_what_it_did():
    before = signal.getsignal(signal.SIGTERM)
    with asked_to_stop() as stopping:
        assert not stopping()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopping()
    assert signal.getsignal(signal.SIGTERM) is before


KILLS = 10


@pytest.mark.slow
def test_killed_at_any_moment(tmp_path, undisturbed):
    """SIGKILL at random points of unfinished runs, each gone on with until it is whole; then another is begun.

    Every file is whole at all times, and every table comes out as the undisturbed one.
    """
    worker = f"""
import contextlib, sys, tempfile, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
from memattn_jax.runs import table
table.FLUSH_SECONDS = 0.02
import test_runs
def start(batch):
    time.sleep(0.01)
    return test_runs.Scores(test_runs.score([job.text for job in batch]))
with tempfile.TemporaryDirectory() as elsewhere, contextlib.redirect_stdout(sys.stderr):
    test_runs.fill(elsewhere + "/first", 1, start=start)  # imports what it needs
    begun = time.perf_counter()
    test_runs.fill(elsewhere + "/second", 100, start=start)
print(time.perf_counter() - begun, flush=True)
test_runs.fill(sys.argv[1], 100, start=start)
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
            assert rows == undisturbed[name][: len(rows)]
        if found == undisturbed:
            tables += 1
        else:
            killed += by_us
    assert tables > 1
    fill(folder, 100)
    assert contents(folder) == undisturbed


def test_progress_is_logged(tmp_path, monkeypatch, capsys):
    """Off a terminal: lines of JSON, with the time that is left."""
    from memattn_jax.runs import progress as module

    monkeypatch.setattr(module, "LOG_SECONDS", 0.0)
    fill(tmp_path, 100, start=lambda batch: time.sleep(0.002) or counting([])(batch))
    captured = capsys.readouterr()
    lines = [json.loads(line) for line in captured.err.splitlines()]
    assert [line["event"] for line in lines] == ["progress"] * 25 + ["done"]
    assert [line["row"] for line in lines[:-1]] == list(range(3, 100, 4))
    assert [line["rows"] for line in lines[:-1]] == list(range(4, 101, 4))
    assert lines[-2]["seconds_left"] == 0
    assert lines[-1]["rows_per_second"] > 0
    assert captured.out.splitlines() == [f"prompt {i}" for i in range(module.PRINTED)]
