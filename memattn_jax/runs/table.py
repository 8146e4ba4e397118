"""A resumable table in Parquet shards, written by one process or by many.

00000.parquet   rows 0 to shard_rows − 1, 00001.parquet the next ones, …
manifest.json   the settings of all rows, the rows in each shard, and whether the table is complete

Which shard a row belongs to depends on the row alone, and shard k is the work of process k mod n. So the files are the
same however many processes write them, no process waits for another, and a run may resume with more or fewer of them. A
shard that is not full yet is a file with fewer rows; it is replaced atomically as rows are added.
"""

import hashlib
import json
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

import pyarrow as pa

from memattn_jax.errors import InputError
from memattn_jax.runs.refusal import refusal, require_same
from memattn_jax.runs.shards import RUN, Row, describe_shard, numbered, read_shard, shard_name, write_shard
from memattn_jax.storage import Store
from memattn_jax.text import counted

MANIFEST = "manifest.json"
FLUSH_SECONDS = 30.0  # of work that a killed process loses at most, besides the batches in progress


class Job(Protocol):
    """What a row is made from: a prompt, or the reason why there is none."""

    @property
    def text(self) -> str:
        """The prompt."""

    @property
    def error(self) -> str | None:
        """Why there is none."""


J = TypeVar("J", bound=Job)
NOTHING: Mapping[str, Any] = MappingProxyType({})
See = Callable[[Sequence[Row], bool], None]


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
        self.schema = schema.with_metadata({RUN: digest})
        self.row_files = row_files
        self.jobs = 0  # seen by `missing`
        self.made_from: dict[int, Any] = {}  # digest of each shard's jobs
        self.twins: dict[int, int] = {}  # rows that repeat an earlier row of their shard
        self.about: dict[str, Any] = {}
        self.overwrite = self.begun = False
        self.growing: dict[int, list[Row]] = {}  # shards of this process that are not full
        self.unwritten: set[int] = set()
        self.flushed = time.monotonic()
        self.watched: tuple[str, ...] = ()
        self.see: See | None = None

    def watch(self, columns: Sequence[str], see: See) -> None:
        """Has every row of this process seen once, so that a summary need not read the table.

        Args:
          columns: needed of rows that exist.
          see: called with rows, and whether they have all columns: new ones as they are added, and those that exist as
            `missing` comes to them.
        """
        self.watched, self.see = tuple(columns), see

    def claim(self, about: dict[str, Any], *, overwrite: bool) -> None:
        """Refuses a folder with other contents, before anything is computed.

        Args:
          about: entries of the manifest besides the identity.
          overwrite: remove existing rows once there are new ones.

        Raises:
          InputError: the folder holds rows with another identity (the message says where it differs), or other shards.
        """
        self.about, self.overwrite = about, overwrite
        if (stored := self.store.read(MANIFEST)) is not None:
            if not overwrite:
                self._check(stored)
            return
        kinds = ("parquet", self.row_files) if overwrite else ("parquet",)
        if others := [name for name in self.store.names() if any(numbered(name, kind) is not None for kind in kinds)]:
            raise InputError(f"{self.store}: holds {others[0]} but no {MANIFEST}; choose another --out")

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

    def load(self, shard: int, columns: Sequence[str] | None = None, numbers: Iterable[int] | None = None) -> list[Row]:
        """The rows of a shard that exist, or those with these numbers; none of a damaged file, with a warning."""
        table = read_shard(self.store, shard, self.schema, lambda rows: columns)
        if table is None:
            return []
        if numbers is not None:
            places = sorted(number - shard * self.shard_rows for number in numbers)
            table = table.take(pa.array([place for place in places if place < table.num_rows], pa.int64()))
        return table.to_pylist()

    def _existing(self, shard: int, columns: Iterable[str]) -> list[Row]:
        """The same of a shard of this process, without the columns that a full one is not asked for."""
        if self.overwrite:
            return []
        names = tuple(dict.fromkeys(["row", "prompt", *columns, *self.watched]))
        table = read_shard(self.store, shard, self.schema, lambda rows: names if rows == self.shard_rows else None)
        rows: list[Row] = [] if table is None else table.to_pylist()
        if self.see is not None and rows:
            self.see(rows, len(rows) < self.shard_rows)
        return rows

    def missing(
        self,
        jobs: Iterable[J],
        same: Callable[[J], Hashable] | None = None,
        copied: Mapping[str, Callable[[J], Any]] = NOTHING,
    ) -> Iterator[tuple[int, J]]:
        """Number and job of each missing row of this process.

        Rows that exist must be of the same jobs; there may be more jobs than there were, after them.

        Args:
          jobs: of all rows, in order.
          same: what a row depends on besides its number. Where an earlier row of the shard has the same, `twins` maps
            the row to it, until the entry is removed.
          copied: besides the prompt, columns and what of a job they hold.

        Raises:
          InputError: an existing row was made from another prompt, or holds something else of it.
        """
        for shard, group in groupby(enumerate(jobs), key=lambda numbered: numbered[0] // self.shard_rows):
            own = self.owns(shard)
            rows = self._existing(shard, copied) if own else []
            if own and len(rows) < self.shard_rows:
                self.growing[shard] = list(rows)
            first: dict[Hashable, int] = {}
            made_from = self.made_from[shard] = hashlib.blake2b(digest_size=16)
            for number, job in group:
                self.jobs = number + 1
                values = {"prompt": job.text} | {name: of(job) for name, of in copied.items()}
                made_from.update(repr((values, job.error and "")).encode())  # its text names a file, which may move
                position = number - shard * self.shard_rows
                twin = number
                if own and same is not None and job.error is None:
                    twin = first.setdefault(same(job), number)
                if own and position >= len(rows):
                    if twin != number:
                        self.twins[number] = twin
                    yield number, job
                elif own:
                    require_same(str(self.store), rows[position], values)

    def row(self, number: int) -> Row:
        """A row of a shard of this process that is not full yet."""
        return self.growing[number // self.shard_rows][number % self.shard_rows]

    def add(self, rows: Iterable[Row]) -> None:
        """Adds rows in order; writes full shards at once, and the others every `FLUSH_SECONDS`.

        Raises:
          OSError: rows could not be written; rows written before are intact.
        """
        self.begin()
        rows = list(rows)
        if self.see is not None:
            nothing = dict.fromkeys(self.schema.names)
            self.see([nothing | row for row in rows], True)
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
            write_shard(self.store, shard, rows, self.schema, self.made_from[shard].hexdigest())
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
        """The shards that any process has written, with their numbers of rows.

        A full one of a process that has yet to overwrite it is none.
        """
        found = []
        for name in self.store.names():
            shard = numbered(name, "parquet")
            if shard is not None and (rows := self._count(name, shard)):
                found.append({"file": name, "first_row": shard * self.shard_rows, "rows": rows})
        return found

    def _count(self, name: str, shard: int) -> int:
        rows, theirs = describe_shard(self.store, name, self.schema)
        if self.owns(shard) or shard not in self.made_from:
            return rows
        whole = rows == min(self.shard_rows, self.jobs - shard * self.shard_rows)
        return 0 if whole and theirs != self.made_from[shard].hexdigest() else rows

    def rows(self, columns: Sequence[str] | None = None, *, others: bool = False) -> Iterator[Row]:
        """All rows of every process, in order; all columns or the given ones; with `others`, none of this process."""
        for first in sorted(found["first_row"] for found in self.shards()):
            shard = first // self.shard_rows
            if not (others and self.owns(shard)):
                yield from self.load(shard, columns)
