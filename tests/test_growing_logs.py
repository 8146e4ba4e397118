"""Logs that grow between runs, and how little of a table a run reads."""

from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from python_device import IDENTITY, SCHEMA, Job, counting, fill, jobs

from memattn_jax import InputError
from memattn_jax.report.findings import Findings
from memattn_jax.report.results import write_json_lines
from memattn_jax.runs import shards
from memattn_jax.runs.progress import Progress
from memattn_jax.runs.run import batches, run
from memattn_jax.runs.table import ShardedTable
from memattn_jax.storage import Store

DETECTORS = ("score",)


class Seen(Findings):
    """Findings about the table of tests/python_device.py, which has fewer columns."""

    def __init__(self) -> None:
        super().__init__(DETECTORS, None)
        self.columns = ("row", "prompt", "score", "error")
        self.numbers: list[int] = []

    def see(self, rows, whole):
        self.numbers += [row["row"] for row in rows]
        super().see([dict.fromkeys(("p", "verdict", "over", "cut")) | {"length": 3} | row for row in rows], whole)

    def facts(self, table: ShardedTable) -> tuple:
        highest = [(row["row"], row["score"]) for row in self.highest(table)]
        return sorted(self.numbers), self.rows, self.failed, sorted(self.sample()), highest


def scored(folder: Path, count: int, start=None, **options) -> tuple[ShardedTable, Seen]:
    """A run whose rows are seen as they pass."""
    table = ShardedTable(Store(folder), SCHEMA, IDENTITY, shard_rows=16, **options)
    table.claim({}, overwrite=False)
    found = Seen()
    table.watch(found.columns, found.see)
    work = batches(table.missing(jobs(count)), 4, 16)
    describe = lambda batch, scores: [  # noqa: E731
        {"row": n, "prompt": job.text, "score": None if job.error else float(n % 37), "error": job.error}
        for n, job in batch
    ]
    assert run(table, work, start or counting([]), describe, Progress("row", None))
    return table, found


def test_a_summary_is_the_same_however_the_rows_came(tmp_path):
    """At once, in three runs, or by three processes; each row is seen once."""
    wanted = scored(tmp_path / "a", 100)
    facts = wanted[1].facts(wanted[0])
    assert facts[0] == list(range(100))
    assert facts[1:3] == (100, 8)
    for count in (23, 71, 100, 100):
        table, found = scored(tmp_path / "b", count)
    assert found.facts(table) == facts
    assert [row["row"] for row in table.load(6, ["row"], [98, 96, 101])] == [96, 98]
    assert table.load(6, numbers=[110]) == []
    for process in range(3):
        table, found = scored(tmp_path / "c", 100, process=process, processes=3)
        assert len(found.numbers) < 50
        found.see(list(table.rows(found.columns, others=True)), False)
    assert found.facts(table) == facts


def test_a_run_reads_each_shard_once_and_only_columns_that_it_needs(tmp_path, monkeypatch):
    """But for the last, which is written again; the one after it does not exist yet."""
    scored(tmp_path, 90)
    asked: Counter[int] = Counter()
    whole: list[int] = []
    read = shards.read_shard

    def watched(store, shard, schema, columns):
        asked[shard] += 1
        whole.extend([shard] * (columns(16 if shard < 5 else 10) is None))
        return read(store, shard, schema, columns)

    monkeypatch.setattr("memattn_jax.runs.table.read_shard", watched)
    _, found = scored(tmp_path, 100)
    assert asked == dict.fromkeys(range(7), 1)
    assert whole == [5, 6]
    assert len(found.numbers) == 100


def test_columns_that_resuming_does_not_need_are_not_read(tmp_path):
    """So damage in them is left to whoever reads them; in the others it is found."""
    fill(tmp_path, 32)
    path = tmp_path / "00000.parquet"
    whole = path.read_bytes()
    places = pq.read_metadata(path).row_group(0)
    for column, found in (("row", True), ("prompt", True), ("score", False)):
        index = SCHEMA.names.index(column)
        chunk = places.column(index)
        at = (chunk.dictionary_page_offset or chunk.data_page_offset) + chunk.total_compressed_size - 3
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        calls: list[int] = []
        if found:
            with pytest.warns(UserWarning, match=r"00000\.parquet is damaged"):
                fill(tmp_path, 32, start=counting(calls))
            assert path.read_bytes() == whole
        else:
            fill(tmp_path, 32, start=counting(calls))
        assert bool(calls) == found
    table = ShardedTable(Store(tmp_path), SCHEMA, IDENTITY, shard_rows=16)
    with pytest.warns(UserWarning, match=r"00000\.parquet is damaged"):
        assert table.load(0) == []


def test_copies_of_all_rows_are_removed_where_several_processes_go_on(tmp_path):
    """None of them has all rows, and the last process may find that another has removed them."""
    table, _ = fill(tmp_path, 32)
    report = tmp_path / "report.html"
    report.write_text("of 32 rows")
    assert write_json_lines(table, 32)
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 32
    for process in range(2):
        table, _ = fill(tmp_path, 64, process=process, processes=2)
        assert not write_json_lines(table, 64)
        assert not report.exists()
        assert not (tmp_path / "results.jsonl").exists()


def test_what_a_row_copies_of_its_record_may_not_change(tmp_path):
    """The prompt is the same, and the column is not."""
    schema = SCHEMA.append(SCHEMA.field("prompt").with_name("id"))

    def again(ids: list[str | None]) -> None:
        table = ShardedTable(Store(tmp_path), schema, IDENTITY, shard_rows=2)
        table.claim({}, overwrite=False)
        known = [Job(f"a cat {n}") for n in range(len(ids))]
        of = dict(zip(known, ids, strict=True))
        lacking = list(table.missing(known, None, {"id": of.__getitem__}))
        table.add([{"row": n, "prompt": job.text, "id": of[job]} for n, job in lacking])
        table.finish()

    again(["7", None, "9"])
    again(["7", None, "9", "10"])
    with pytest.raises(InputError, match=r"row 1 .* id 'None'.*'8'.*--overwrite"):
        again(["7", "8", "9", "10"])
    with pytest.raises(InputError, match=r"row 2 .* id '9'.*'x'.*--overwrite"):
        again(["7", None, "x", "10"])
