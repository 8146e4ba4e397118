"""The loop of a long run: batches of the rows that a table lacks, through a device, into the table."""

import contextlib
import signal
from collections.abc import Callable, Container, Hashable, Iterable, Iterator
from itertools import chain, islice, takewhile
from typing import Any

from memattn_jax.runs.progress import Progress
from memattn_jax.runs.stream import Overlap, asked_to_stop
from memattn_jax.runs.table import J, Row, ShardedTable

Batch = list[tuple[int, J]]  # numbers and jobs of rows


def batch_size(jobs: Iterable[J], most: int) -> tuple[int, Iterator[J]]:
    """Rows a batch: `most`, or as many as there are; and the jobs, none of them lost."""
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
    """Rows in batches of one kind and one shard each, with at most `size` that are no twins.

    Which rows share a batch depends on the shard's jobs alone, so that a run that was interrupted between batches goes
    on with the very batches of one that was not.

    Args:
      rows: numbers and jobs.
      size: rows that the device computes at once.
      shard_rows: rows in a full shard.
      kind: of a job.
      twins: numbers of rows that repeat others, see `ShardedTable.missing`; asked as the rows come.
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
    """The batch with its last job repeated, so that one program serves all."""
    return batch + batch[-1:] * (size - len(batch))


def run(
    table: ShardedTable,
    work: Iterator[Batch],
    start: Callable[[list[Any]], Any],
    describe: Callable[[Batch, Any], list[Row]],
    progress: Progress,
    repeat: Callable[[Row, int, Any], Row] = lambda row, number, job: row | {"row": number},
) -> bool:
    """Makes rows until all are there or the process is asked to stop; whatever ends it, rows made are written.

    Args:
      table: claimed.
      work: batches of rows that it lacks.
      start: gives the jobs of a batch that have a prompt, never none, to the device, and returns something to `fetch`.
      describe: the table's rows of a batch, from what was fetched; that is None where no job had a prompt.
      progress: told of every batch.
      repeat: makes the row with a number and a job from the row that it is a twin of.

    Returns:
      Whether all rows are there; not after SIGTERM.

    Raises:
      OSError: rows could not be written; those written before are whole.
      KeyboardInterrupt: the user asked to stop; its text says what is kept.
    """
    overlap = Overlap()
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
            with contextlib.suppress(OSError):  # a full disk, which the first error tells of
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
    """What is left of a run that ends early."""
    return f"{progress.rows} {progress.unit}s of this run are kept in {table.store}; the same command resumes"
