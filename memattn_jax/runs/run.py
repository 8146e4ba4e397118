"""The loop of a long run: batches of the rows that a table lacks, through a device, into the table."""

import contextlib
from collections.abc import Callable, Hashable, Iterable, Iterator
from itertools import chain, groupby, islice, takewhile
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
    rows: Iterable[tuple[int, J]], size: int, shard_rows: int, kind: Callable[[J], Hashable] = lambda job: None
) -> Iterator[Batch]:
    """Rows in batches of at most `size`, of one kind and one shard each.

    Which rows share a batch depends on their numbers alone, so that a run that was interrupted between batches goes on
    with the very batches of one that was not.
    """

    def place(numbered: tuple[int, J]) -> tuple[int, int, Hashable]:
        number, job = numbered
        return number // shard_rows, number % shard_rows // size, kind(job)

    for _, group in groupby(rows, key=place):
        yield list(group)


def fill_up(batch: list[J], size: int) -> list[J]:
    """The batch with its last job repeated, so that one program serves all."""
    return batch + batch[-1:] * (size - len(batch))


def run(
    table: ShardedTable,
    work: Iterator[Batch],
    start: Callable[[list[Any]], Any],
    describe: Callable[[Batch, Any], list[Row]],
    progress: Progress,
) -> bool:
    """Makes rows until all are there or the process is asked to stop; whatever ends it, rows made are written.

    Args:
      table: claimed.
      work: batches of rows that it lacks.
      start: gives the jobs of a batch that have a prompt, never none, to the device, and returns something to `fetch`.
      describe: the table's rows of a batch, from what was fetched; that is None where no job had a prompt.
      progress: told of every batch.

    Returns:
      Whether all rows are there.

    Raises:
      OSError: rows could not be written; those written before are whole.
    """
    overlap = Overlap()
    errors = 0

    def launch(batch: Batch) -> Any:
        good = [job for _, job in batch if job.error is None]
        return start(good) if good else None

    def fetch(started: Any) -> Any:
        return None if started is None else started.fetch()

    with asked_to_stop() as stopping:
        try:
            for batch, result in overlap(takewhile(lambda _: not stopping(), work), launch, fetch):
                rows = describe(batch, result)
                table.add(rows)
                errors += sum(row["error"] is not None for row in rows)
                progress.update(rows)
        except BaseException:
            with contextlib.suppress(OSError):  # a full disk, which the first error tells of
                table.flush()
            raise
        stopped = stopping()
        if stopped:
            table.flush()
        else:
            table.finish()
    share = overlap.device_share
    progress.close(
        "stopped" if stopped else "done", errors=errors, device_share=None if share is None else round(share, 3)
    )
    return not stopped
