"""A resumable table in Parquet shards, written by one process or by many.

00000.parquet   rows 0 to shard_rows − 1, 00001.parquet the next ones, …
manifest.json   the settings of all rows, the rows in each shard, and whether the table is complete

Which shard a row belongs to depends on the row alone, and shard k is the work of process k mod n. So the files are the
same however many processes write them, no process waits for another, and a run may resume with more or fewer of them. A
shard that is not full yet is a file with fewer rows; it is replaced atomically as rows are added.
"""

import hashlib
import io
import json
import time
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator
from itertools import groupby
from typing import Any, Protocol, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from memattn_jax.errors import InputError
from memattn_jax.runs.refusal import refusal
from memattn_jax.storage import Store
from memattn_jax.text import counted, printable

MANIFEST = "manifest.json"
FLUSH_SECONDS = 30.0  # of work that a killed process loses at most, besides the batches in progress
QUOTED = 40  # characters of a prompt in a message


class Job(Protocol):
    """What a row is made from: a prompt, or the reason why there is none."""

    @property
    def text(self) -> str:
        """The prompt."""

    @property
    def error(self) -> str | None:
        """Why there is none."""


J = TypeVar("J", bound=Job)
Row = dict[str, Any]


def shard_name(shard: int) -> str:
    """File name of a shard."""
    return f"{shard:05d}.parquet"


def row_name(row: int, suffix: str) -> str:
    """File name for a row, such as that of its image."""
    return f"{row:05d}.{suffix}"


def numbered(name: str, suffix: str | None) -> int | None:
    """The number in a file name with this suffix, of a shard or a row; None for other names."""
    stem, _, ending = name.partition(".")
    return int(stem) if stem.isdecimal() and ending == suffix else None


class ShardedTable:
    """A table in which row n depends on job n and the settings alone."""

    def __init__(
        self,
        store: Store,
        schema: pa.Schema,
        identity: dict[str, Any],
        *,
        shard_rows: int,
        process: int = 0,
        processes: int = 1,
        row_files: str | None = None,
    ):
        """Sets up the table without reading or writing.

        Args:
          store: the folder.
          schema: of the rows; contains `row`, an integer, and `prompt`.
          identity: what rows depend on besides their job, for JSON. A run resumes only a table with the same identity.
          shard_rows: rows in a full shard.
          process: index of this process.
          processes: number of processes.
          row_files: suffix of files that belong to rows, see `row_name`; None if there are none.
        """
        self.store, self.shard_rows = store, shard_rows
        self.process, self.processes = process, processes
        self.identity: dict[str, Any] = json.loads(json.dumps(identity | {"shard_rows": shard_rows}))
        digest = hashlib.blake2b(json.dumps(self.identity, sort_keys=True).encode(), digest_size=16).hexdigest()
        self.schema = schema.with_metadata({"identity": digest})
        self.row_files = row_files
        self.jobs = 0  # seen by `missing`
        self.twins: dict[int, int] = {}  # rows that repeat an earlier row of their shard
        self.about: dict[str, Any] = {}
        self.overwrite = self.begun = False
        self.growing: dict[int, list[Row]] = {}  # shards of this process that are not full
        self.unwritten: set[int] = set()
        self.flushed = time.monotonic()

    def claim(self, about: dict[str, Any], *, overwrite: bool) -> None:
        """Refuses a folder with other contents, before anything is computed.

        Args:
          about: entries of the manifest besides the identity.
          overwrite: remove existing rows once there are new ones.

        Raises:
          InputError: the folder holds rows with another identity (the message says where it differs), or other shards.
        """
        self.about, self.overwrite = about, overwrite
        if overwrite:
            return
        stored = self.store.read(MANIFEST)
        if stored is not None:
            self._check(stored)
        elif shards := [name for name in self.store.names() if numbered(name, "parquet") is not None]:
            raise InputError(f"{self.store}: holds {shards[0]} but no {MANIFEST}; choose another --out")

    def begin(self) -> None:
        """On the first call, removes what is to be overwritten and writes the manifest."""
        if self.begun:
            return
        self.begun = True
        for name in self.store.names() if self.overwrite else ():
            shard, row = numbered(name, "parquet"), numbered(name, self.row_files)
            if row is not None:
                shard = row // self.shard_rows
            if shard is not None and self.owns(shard):
                self.store.remove(name)
        self._describe({"complete": False})

    def _check(self, stored: bytes) -> None:
        try:
            old = json.loads(stored)["identity"]
        except (ValueError, KeyError, TypeError):
            raise InputError(
                f"{self.store}/{MANIFEST}: not a manifest of this package, or damaged; choose another --out"
            ) from None
        if old != self.identity:
            raise InputError(refusal(str(self.store), old, self.identity))

    def _describe(self, ranges: dict[str, Any]) -> None:
        content = {"identity": self.identity} | self.about | ranges
        self.store.write(MANIFEST, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())

    def owns(self, shard: int) -> bool:
        """Whether a shard belongs to this process."""
        return shard % self.processes == self.process

    def load(self, shard: int, columns: list[str] | None = None) -> list[Row]:
        """The rows of a shard that exist; none of a damaged file, with a warning."""
        content = self.store.read(shard_name(shard))
        if content is None:
            return []
        try:
            table = pq.read_table(pa.BufferReader(content), page_checksum_verification=True)
        except (pa.ArrowException, OSError):
            warnings.warn(f"{self.store}: {shard_name(shard)} is damaged; its rows are computed again", stacklevel=2)
            return []
        if (table.schema.metadata or {}).get(b"identity") != (self.schema.metadata or {})[b"identity"]:
            return []  # left by a run that is being overwritten
        return (table if columns is None else table.select(columns)).to_pylist()

    def missing(self, jobs: Iterable[J], same: Callable[[J], Hashable] | None = None) -> Iterator[tuple[int, J]]:
        """Number and job of each missing row of this process.

        Args:
          jobs: of all rows, in order.
          same: what a row depends on besides its number. Where an earlier row of the shard has the same, `twins` maps
            the row to it, until the entry is removed.

        Raises:
          InputError: an existing row was made from another prompt.
        """
        for shard, group in groupby(enumerate(jobs), key=lambda numbered: numbered[0] // self.shard_rows):
            own = self.owns(shard)
            rows = self.load(shard, ["prompt"]) if own and not self.overwrite else []
            if own and len(rows) < self.shard_rows:
                self.growing[shard] = self.load(shard) if rows else []
            first: dict[Hashable, int] = {}
            for number, job in group:
                self.jobs = number + 1
                position = number - shard * self.shard_rows
                twin = number
                if own and same is not None and job.error is None:
                    twin = first.setdefault(same(job), number)
                if own and position >= len(rows):
                    if twin != number:
                        self.twins[number] = twin
                    yield number, job
                elif own and rows[position]["prompt"] != job.text:
                    old, new = (printable(text, QUOTED) for text in (rows[position]["prompt"], job.text))
                    raise InputError(
                        f"{self.store}: row {number} was made from '{old}', and the prompt is now '{new}'; "
                        "choose another --out or add --overwrite"
                    )

    def row(self, number: int) -> Row:
        """A row of a shard of this process that is not full yet."""
        return self.growing[number // self.shard_rows][number % self.shard_rows]

    def add(self, rows: Iterable[Row]) -> None:
        """Adds rows in order; writes full shards at once, and the others every `FLUSH_SECONDS`.

        Raises:
          OSError: rows could not be written; rows written before are intact.
        """
        self.begin()
        for row in rows:
            shard = row["row"] // self.shard_rows
            self.growing[shard].append(row)
            self.unwritten.add(shard)
        full = [shard for shard in self.unwritten if len(self.growing[shard]) == self.shard_rows]
        if full or time.monotonic() - self.flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes all rows added so far."""
        for shard in sorted(self.unwritten):
            rows = self.growing[shard]
            sink = io.BytesIO()
            table = pa.Table.from_pylist(rows, self.schema)
            pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
            self.store.write(shard_name(shard), sink.getvalue())
            self.unwritten.discard(shard)
            if len(rows) == self.shard_rows:
                del self.growing[shard]
        self.flushed = time.monotonic()

    def finish(self) -> None:
        """Writes all rows added so far, and a manifest of the whole table.

        Each process records what exists when it ends, so that the last one records that the table is complete.

        Raises:
          InputError: the table has more rows than there are jobs.
        """
        self.begin()
        self.flush()
        firsts = range(0, self.jobs, self.shard_rows)
        whole = {shard_name(i): min(self.shard_rows, self.jobs - first) for i, first in enumerate(firsts)}
        shards: list[dict[str, Any]] | None = None
        while shards != (shards := self.shards()):  # another process may have ended in between, and recorded less
            there = {shard["file"]: shard["rows"] for shard in shards}
            rows = {"rows": sum(there.values()), "records": self.jobs}
            self._describe({"complete": there == whole, **rows, "shards": shards})
        own = (shard["file"] for shard in shards if self.owns(shard["first_row"] // self.shard_rows))
        if more := [name for name in own if there[name] > whole.get(name, 0)]:
            raise InputError(
                f"{self.store}: {more[0]} holds rows beyond the {counted(self.jobs, 'prompt')}; "
                "choose another --out or add --overwrite"
            )

    def stop(self) -> None:
        """Writes all rows added so far, for a run that ends early."""
        if self.unwritten:
            self.flush()
        if self.begun:
            self._describe({"complete": False, "shards": self.shards()})

    def shards(self) -> list[dict[str, Any]]:
        """The shards that any process has written, with their numbers of rows."""
        found = []
        for name in self.store.names():
            shard = numbered(name, "parquet")
            if shard is not None and (rows := self.count(name)):
                found.append({"file": name, "first_row": shard * self.shard_rows, "rows": rows})
        return found

    def count(self, name: str) -> int:
        """Number of rows in a shard's file; 0 if it is damaged or belongs to another run."""
        try:
            with self.store.open(name) as file:
                metadata = pq.read_metadata(file)
        except (pa.ArrowException, FileNotFoundError):
            return 0
        identity = (self.schema.metadata or {})[b"identity"]
        return metadata.num_rows if (metadata.metadata or {}).get(b"identity") == identity else 0

    def rows(self, columns: list[str] | None = None) -> Iterator[Row]:
        """All rows of every process, in order; all columns or the given ones."""
        shards = sorted(shard for name in self.store.names() if (shard := numbered(name, "parquet")) is not None)
        for shard in shards:
            yield from self.load(shard, columns)
