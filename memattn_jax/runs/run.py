"""The main loop of a long run: computes the missing rows of a table, batch by batch."""

import contextlib
import signal
from collections.abc import Callable, Container, Hashable, Iterable, Iterator
from itertools import chain, islice, takewhile
from typing import Any

from memattn_jax.runs.progress import Progress
from memattn_jax.runs.shards import Row
from memattn_jax.runs.stream import AHEAD, Overlap, asked_to_stop
from memattn_jax.runs.table import J, ShardedTable
from memattn_jax.text import counted

Batch = list[tuple[int, J]]  # numbers and jobs of rows


def batch_size(jobs: Iterable[J], most: int) -> tuple[int, Iterator[J]]:
    """Rows per batch, `most` or as many as there are, and an iterator over all jobs."""
    jobs = iter(jobs)
    head = list(islice(jobs, most))
    return max(1, len(head)), chain(head, jobs)


def batches(
    rows: Iterable[tuple[int, J]],
    size: int,
    shard_rows: int,
    kind: Callable[[J], Hashable] = lambda job: None,
    twins: Container[int] = (),
) -> Iterator[Batch]:
    """Rows in batches of one kind and one shard each, with at most `size` rows besides twins.

    Which rows share a batch depends on the shard's jobs alone, so that a run that was interrupted between batches
    resumes with the same batches as an uninterrupted one.

    Args:
      rows: numbers and jobs.
      size: rows that the device computes at once.
      shard_rows: rows in a full shard.
      kind: of a job; a batch has jobs of one kind.
      twins: numbers of rows that repeat others, see `ShardedTable.missing`; looked up as rows arrive.
    """
    batch: Batch = []
    place: tuple[int, Hashable] | None = None
    computed = 0
    for number, job in rows:
        here = number // shard_rows, kind(job)
        new = number not in twins
        if batch and (here != place or (new and computed == size)):
            yield batch
            batch, computed = [], 0
        batch.append((number, job))
        place, computed = here, computed + new
    if batch:
        yield batch


def fill_up(batch: list[J], size: int) -> list[J]:
    """Pads a batch by repeating its last job, so that all batches use one compiled program."""
    return batch + batch[-1:] * (size - len(batch))


def run(
    table: ShardedTable,
    work: Iterator[Batch],
    start: Callable[[list[Any]], Any],
    describe: Callable[[Batch, Any], list[Row]],
    progress: Progress,
    repeat: Callable[[Row, int, Any], Row] = lambda row, number, job: row | {"row": number},
    ahead: int = AHEAD,
) -> bool:
    """Computes rows until the table is complete or the process is asked to stop; finished rows are always written.

    Args:
      table: a claimed table.
      work: batches of its missing rows.
      start: starts computing those jobs of a batch that have a prompt, at least one; its result has a method `fetch`.
      describe: makes table rows from a batch and the fetched result, which is None where no job had a prompt.
      progress: updated after every batch.
      repeat: makes a row from its twin, its number and its job.
      ahead: batches in progress at once.

    Returns:
      Whether the table is complete; False after SIGTERM.

    Raises:
      OSError: rows could not be written; rows written before are intact.
      KeyboardInterrupt: the user pressed Ctrl-C; the message says what is kept.
    """
    overlap = Overlap(ahead)
    errors = repeated = 0

    def launch(batch: Batch) -> Any:
        good = [job for number, job in batch if job.error is None and number not in table.twins]
        return start(good) if good else None

    def fetch(started: Any) -> Any:
        return None if started is None else started.fetch()

    def finish(batch: Batch, result: Any) -> list[Row]:
        made = describe([item for item in batch if item[0] not in table.twins], result)
        rows = {row["row"]: row for row in made}
        for number, job in batch:
            if number in table.twins:
                twin = table.twins.pop(number)
                rows[number] = repeat(rows[twin] if twin in rows else table.row(twin), number, job)
        return [rows[number] for number, _ in batch]

    with asked_to_stop() as stopping:
        try:
            for batch, result in overlap(takewhile(lambda _: not stopping(), work), launch, fetch):
                repeated += sum(number in table.twins for number, _ in batch)
                rows = finish(batch, result)
                table.add(rows)
                errors += sum(row["error"] is not None for row in rows)
                progress.update(rows)
        except BaseException as error:
            with contextlib.suppress(OSError):  # such as a full disk, which the first error reports
                table.stop()
            if isinstance(error, KeyboardInterrupt):
                raise KeyboardInterrupt(kept(table, progress)) from None
            raise
        stopped = stopping()
        if stopped:
            table.stop()
        else:
            table.finish()
    share = overlap.device_share
    progress.close(
        "stopped" if stopped else "done",
        errors=errors,
        repeated=repeated,
        device_share=None if share is None else round(share, 3),
    )
    if stopped == signal.SIGINT:
        raise KeyboardInterrupt(kept(table, progress))
    return not stopped


def kept(table: ShardedTable, progress: Progress) -> str:
    """The message for a run that ends early."""
    return f"kept {counted(progress.rows, progress.unit)} of this run in {table.store}; the same command resumes"
