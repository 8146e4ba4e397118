"""A device made of Python, and whole runs on it."""

import json
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from memattn_jax.runs.progress import Progress
from memattn_jax.runs.run import batches, fill_up, run
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


def manifest_of(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


def counting(calls: list[int]):
    def start(batch: list[Job]) -> Scores:
        calls.append(len(batch))
        return Scores(score([job.text for job in batch]))

    return start


def failing(rows: int, error: BaseException):
    """A source that ends badly."""
    yield from jobs(100)[:rows]
    raise error
