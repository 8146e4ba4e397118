"""A device that never waits for the host, and a process that may be asked to stop."""

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

Batch = TypeVar("Batch")
Started = TypeVar("Started")
Result = TypeVar("Result")

AHEAD = 2  # batches that the device has, so that the next one is there when one is done


class Overlap:
    """Runs batches on the device while the host prepares the next ones and writes the last ones.

    Attributes:
      busy: seconds from the first batch's end on in which the device had a batch.
      elapsed: all seconds from the first batch's end to the last one's.
    """

    def __init__(self) -> None:
        self.busy = self.elapsed = 0.0
        self._ready: float | None = None  # when the last batch was done

    @property
    def device_share(self) -> float | None:
        """Share of the time in which the device was busy, the first batch, which compiles, left out."""
        return self.busy / self.elapsed if self.elapsed else None

    def __call__(
        self, batches: Iterable[Batch], start: Callable[[Batch], Started], fetch: Callable[[Started], Result]
    ) -> Iterator[tuple[Batch, Result]]:
        """Yields each batch with its result, in order.

        Args:
          batches: read as the device gets free.
          start: prepares a batch and gives it to the device, without waiting for it.
          fetch: waits for what `start` returned; runs in a thread of its own.
        """
        running: deque[tuple[Batch, Future[Result]]] = deque()
        with ThreadPoolExecutor(1) as waiter:
            for batch in batches:
                started = start(batch)
                running.append((batch, waiter.submit(self._finish, fetch, started, time.perf_counter())))
                if len(running) == AHEAD:
                    done, result = running.popleft()
                    yield done, result.result()
            for done, result in running:
                yield done, result.result()

    def _finish(self, fetch: Callable[[Started], Result], started: Started, launched: float) -> Result:
        result = fetch(started)
        now = time.perf_counter()
        if self._ready is not None:
            self.busy += now - max(launched, self._ready)
            self.elapsed += now - self._ready
        self._ready = now
        return result


@contextmanager
def asked_to_stop(number: signal.Signals = signal.SIGTERM) -> Iterator[Callable[[], bool]]:
    """Whether a signal came: SIGTERM, as preempted machines send it, or Ctrl-C's SIGINT.

    Within, it does not end the process, but for a second SIGINT, which does what it always does. Outside of the main
    thread, where Python takes no signals, none comes.
    """
    asked: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        if number == signal.SIGINT:
            signal.signal(number, previous)
            os.write(2, b"stopping after this step; Ctrl-C again stops at once\n")  # print is not safe in a handler

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    previous: Any = signal.signal(number, note)
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(number, previous)
