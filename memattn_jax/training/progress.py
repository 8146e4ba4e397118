"""Progress of a training run: a bar on a terminal, JSON lines on standard error elsewhere."""

import json
import sys
import time
from typing import Any

from tqdm import tqdm

from memattn_jax.runs.progress import LOG_SECONDS


class Counter:
    """Counts progress towards a known total.

    Off a terminal, it prints a line after the first step, which compiles, and then every half minute.
    """

    def __init__(self, event: str, unit: str, total: int, first: int = 0):
        """Starts the clock.

        Args:
          event: name of the activity.
          unit: what is counted.
          total: number of units.
          first: number already done.
        """
        self.bar = tqdm(desc=event, unit=unit, initial=first, total=total, disable=None)  # None: on a terminal only
        self.terminal = not self.bar.disable
        self.event, self.unit, self.total = event, unit, total
        self.start = time.monotonic()
        self.begun: tuple[int, float] | None = None  # how many were done at the first call, and when
        self.logged = 0.0

    def at(self, count: int, **values: float) -> None:
        """Reports that `count` are done, together with `values`."""
        now = time.monotonic()
        self.bar.update(count - self.bar.n)
        self.bar.set_postfix({name: f"{value:.4f}" for name, value in values.items()})
        if self.begun is None:
            self.begun = count, now
            if count == self.total:
                return
        elif now - self.logged < LOG_SECONDS:
            return
        self.logged = now
        if not self.terminal:
            self.log(count, now, *self.begun, values)

    def log(self, count: int, now: float, begun: int, then: float, values: dict[str, float]) -> None:
        """Writes one line."""
        speed = (count - begun) / (now - then) if count > begun else None
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "event": self.event,
            self.unit: count,
            f"{self.unit}s": self.total,
            "seconds": round(now - self.start, 2),
            f"{self.unit}s_per_second": None if speed is None else round(speed, 3),
            "seconds_left": None if speed is None else round((self.total - count) / speed),
        }
        print(json.dumps(line | {name: round(value, 4) for name, value in values.items()}), file=sys.stderr, flush=True)

    def close(self) -> None:
        """Ends the bar."""
        self.bar.close()
