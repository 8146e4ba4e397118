"""Tables that go on where they stopped, by any number of processes, with a device made of Python."""

import json
import random
import uuid
import warnings
from itertools import chain
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from damage import damaged_bytes
from fsspec.implementations.memory import MemoryFileSystem
from python_device import (
    IDENTITY,
    SCHEMA,
    Job,
    Scores,
    contents,
    counting,
    describe,
    failing,
    fill,
    jobs,
    manifest_of,
    score,
)

from memattn_jax import InputError
from memattn_jax.errors import LIMIT
from memattn_jax.runs.progress import Progress
from memattn_jax.runs.refusal import differences, refusal
from memattn_jax.runs.run import batches, run
from memattn_jax.runs.table import ShardedTable
from memattn_jax.storage import Store


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
def test_any_number_of_processes_writes_the_same_files(tmp_path, undisturbed_shards, processes):
    for process in reversed(range(processes)):  # as if the first were the last to finish
        fill(tmp_path, 100, process=process, processes=processes)
    assert contents(tmp_path) == undisturbed_shards
    assert json.loads((tmp_path / "manifest.json").read_text())["rows"] == 100


def test_the_manifest_tells_what_is_there(tmp_path):
    """Of several processes only the last to finish says that all is."""
    for process in (1, 0, 2):
        fill(tmp_path, 100, process=process, processes=3)
        manifest, there = manifest_of(tmp_path), contents(tmp_path)
        assert {shard["file"]: shard["rows"] for shard in manifest["shards"]} == {n: len(r) for n, r in there.items()}
        assert manifest["rows"] == sum(map(len, there.values()))
        assert manifest["complete"] == (process == 2) == (manifest["rows"] == manifest["records"])
    (tmp_path / "00003.parquet").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"00003\.parquet is damaged"):
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


def test_old_shards_of_a_process_that_has_yet_to_overwrite_them_are_not_counted(tmp_path):
    """Their rows have the same settings and other prompts; where the prompts are the same, so are the rows."""
    for process in range(2):
        fill(tmp_path, 60, process=process, processes=2)
    other = [Job(f"another {job.text}", job.error) for job in jobs(60)]
    fill(tmp_path, 60, source=other, process=0, processes=2, overwrite=True)
    manifest = manifest_of(tmp_path)
    assert not manifest["complete"]
    assert [shard["first_row"] for shard in manifest["shards"]] == [0, 32]
    table, _ = fill(tmp_path, 60, source=other, process=1, processes=2, overwrite=True)
    assert manifest_of(tmp_path)["complete"]
    assert all(row["prompt"].startswith("another ") for row in table.rows(others=True))
    fill(tmp_path, 60, source=other, process=0, processes=2, overwrite=True)
    assert manifest_of(tmp_path)["complete"]


def test_a_log_that_another_process_finds_elsewhere_is_the_same(tmp_path):
    """The errors of bad records name its files."""
    for process, place in enumerate(("/mnt/a", "/mnt/b")):
        source = [Job(job.text, job.error and f"{place}/log.txt: {job.error}") for job in jobs(60)]
        fill(tmp_path, 60, source=source, process=process, processes=2)
    assert manifest_of(tmp_path)["complete"]


def test_a_damaged_shard_of_another_process_is_left_out_with_a_warning(tmp_path):
    """Its process computes it again. Damage to the digest of a run makes a file one of another run."""
    for process in range(2):
        fill(tmp_path, 60, process=process, processes=2)
    before = contents(tmp_path)
    rows = [row for shard in before.values() for row in shard]
    path = tmp_path / "00001.parquet"
    others = [row for row in rows if row not in before[path.name]]
    whole, rng = path.read_bytes(), random.Random(0)
    for _ in range(200):
        path.write_bytes(damaged_bytes(whole, rng))
        table = ShardedTable(Store(tmp_path), SCHEMA, IDENTITY, shard_rows=16, process=0, processes=2)
        with warnings.catch_warnings(record=True) as given:
            warnings.simplefilter("always")
            found = list(table.rows())
        assert all("00001.parquet is damaged" in str(warning.message) for warning in given)
        assert found == others if given else found in (rows, others)
    path.write_bytes(whole[:-9])
    with pytest.warns(UserWarning, match=r"00001\.parquet is damaged"):
        fill(tmp_path, 60, process=0, processes=2)
    assert not manifest_of(tmp_path)["complete"]


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


def test_a_run_goes_on_with_another_number_of_processes(tmp_path, undisturbed_shards):
    fill(tmp_path, 100, process=1, processes=3)
    made = set(contents(tmp_path))
    fill(tmp_path, 100, process=0, processes=1)
    assert made == {"00001.parquet", "00004.parquet"}
    assert contents(tmp_path) == undisturbed_shards


def test_a_run_that_is_there_makes_nothing(tmp_path, undisturbed_shards):
    fill(tmp_path, 100)
    calls: list[int] = []
    _, whole = fill(tmp_path, 100, start=counting(calls))
    assert whole
    assert calls == []
    assert contents(tmp_path) == undisturbed_shards


def test_more_prompts_are_added(tmp_path, undisturbed_shards):
    fill(tmp_path, 88)  # 5.5 shards
    calls: list[int] = []
    fill(tmp_path, 100, start=counting(calls))
    assert sum(calls) == sum(job.error is None for job in jobs(100)[88:])
    assert contents(tmp_path) == undisturbed_shards


def test_object_storage(undisturbed_shards, monkeypatch):
    """The same through fsspec's file system in memory, which stands for gs:// and s3://; these know no empty folder."""
    listed = MemoryFileSystem.ls

    def ls(self, path, *args, **options):
        if not (found := listed(self, path, *args, **options)):
            raise FileNotFoundError(path)
        return found

    monkeypatch.setattr(MemoryFileSystem, "ls", ls)
    url = f"memory://{uuid.uuid4()}/scores"
    fill(url, 40)
    table, _ = fill(url, 100)
    assert list(table.rows()) == [row for shard in undisturbed_shards.values() for row in shard]
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


def test_overwriting_removes_nothing_of_others(tmp_path):
    (tmp_path / "20240101.parquet").write_text("a log of each day")
    with pytest.raises(InputError, match=r"holds 20240101.parquet but no manifest.json"):
        fill(tmp_path, 3, overwrite=True)
    assert (tmp_path / "20240101.parquet").exists()
