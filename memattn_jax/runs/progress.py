"""Progress of a run: a bar on a terminal, JSON lines elsewhere, and metrics at the end."""

import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from tqdm import tqdm

from memattn_jax.runs.shards import Row
from memattn_jax.text import printable

LOG_SECONDS = 30.0
PRINTED = 50  # maximum number of rows printed


class Progress:
    """Counts rows and reports progress.

    Attributes:
      rows: number of rows that this process has finished in this run.
    """

    def __init__(
        self, unit: str, count: Callable[[], int | None] | None, format_row: Callable[[Row], str] | None = None
    ):
        """Starts the clock.

        Args:
          unit: what a row is.
          count: returns the total number of rows, or an estimate; None, like the result None, if it is unknown.
          format_row: returns one line about a row; None prints no rows.
        """
        self.format_row, self.unit, self.count = format_row, unit, count
        self.bar = tqdm(unit=unit, disable=None)  # None: on a terminal only
        self.terminal = not self.bar.disable  # which closing the bar changes
        self.rows = 0
        self.total: int | None = None
        self.start = self.logged = time.monotonic()
        self.first: tuple[int, int, float] | None = None  # last row and rows of the first batch, and when it was done

    def update(self, rows: Sequence[Row]) -> None:
        """Counts finished rows, and prints the first ones."""
        last, now = rows[-1]["row"], time.monotonic()
        if self.first is None:
            self.first = last, len(rows), now
            self.bar.initial = self.bar.n = rows[0]["row"]
        if self.count is not None:
            self.total = self.bar.total = self.count()
        if self.format_row is not None:
            for row in rows[: max(0, PRINTED - self.rows)]:
                self.bar.write(printable(self.format_row(row)))
        self.rows += len(rows)
        self.bar.update(last + 1 - self.bar.n)
        if not self.terminal and now - self.logged > LOG_SECONDS:
            self.logged = now
            begun, _, then = self.first
            left = None
            if self.total is not None and last > begun:  # other processes' rows count too
                left = round((self.total - last - 1) * (now - then) / (last - begun))
            self.log("progress", row=last, seconds_left=left)

    def log(self, event: str, **values: Any) -> None:
        """Writes the metrics to standard error; rows per second leave out the first batch, which compiles."""
        now = time.monotonic()
        _, first, then = self.first or (0, 0, now)
        metrics = {
            "rows": self.rows,
            "seconds": round(now - self.start, 2),
            "first_row_seconds": None if self.first is None else round(then - self.start, 2),
            "rows_per_second": None if self.rows <= first else round((self.rows - first) / (now - then), 2),
            **values,
        }
        if not self.terminal:
            stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            text = json.dumps({"time": stamp, "event": event} | metrics)
        else:
            text = f"{event}: " + ", ".join(f"{name} {value}" for name, value in metrics.items() if value is not None)
        print(text, file=sys.stderr, flush=True)

    def close(self, event: str, **values: Any) -> None:
        """Ends the bar and writes the metrics of the run."""
        self.bar.close()
        self.log(event, **values)
