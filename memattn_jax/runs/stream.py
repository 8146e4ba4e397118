"""Overlap host and device work; stop cleanly on SIGTERM and Ctrl-C."""

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

AHEAD = 2  # batches queued on the device, so that the next one can start when one is done


class Overlap:
    """Runs batches on the device while the host prepares the next ones and writes the last ones.

    Attributes:
      busy: seconds, after the first batch, in which the device had a batch.
      elapsed: seconds from the end of the first batch to the end of the last one.
    """

    def __init__(self, ahead: int = AHEAD) -> None:
        """With `ahead` batches in progress at once."""
        self.ahead = ahead
        self.busy = self.elapsed = 0.0
        self._ready: float | None = None  # when the last batch was done

    @property
    def device_share(self) -> float | None:
        """Share of time in which the device was busy, without the first batch, which compiles."""
        return self.busy / self.elapsed if self.elapsed else None

    def __call__(
        self, batches: Iterable[Batch], start: Callable[[Batch], Started], fetch: Callable[[Started], Result]
    ) -> Iterator[tuple[Batch, Result]]:
        """Yields each batch with its result, in order.

        Args:
          batches: read as the device becomes free.
          start: prepares a batch and starts it on the device, without waiting for the result.
          fetch: waits for what `start` returned; runs in a separate thread.
        """
        running: deque[tuple[Batch, Future[Result]]] = deque()
        waiter = ThreadPoolExecutor(1)
        try:
            for batch in batches:
                started = start(batch)
                running.append((batch, waiter.submit(self._finish, fetch, started, time.perf_counter())))
                if len(running) == self.ahead:
                    done, result = running.popleft()
                    yield done, result.result()
            for done, result in running:
                yield done, result.result()
        finally:
            waiter.shutdown(wait=False, cancel_futures=True)  # an error need not wait for the device

    def _finish(self, fetch: Callable[[Started], Result], started: Started, launched: float) -> Result:
        result = fetch(started)
        now = time.perf_counter()
        if self._ready is not None:
            self.busy += now - max(launched, self._ready)
            self.elapsed += now - self._ready
        self._ready = now
        return result


STOPPING = b"\ninterrupted: finishing the batches in progress; Ctrl-C again stops at once\n"


@contextmanager
def asked_to_stop() -> Iterator[Callable[[], int | None]]:
    """Yields a function that returns the signal that asked for a stop, or None; the first one does not end the process.

    Preempted machines send SIGTERM. SIGINT is a user's Ctrl-C; a second one raises KeyboardInterrupt, and a handler
    other than Python's default is left in place. Outside the main thread, where Python allows no handlers, the function
    always returns None.
    """
    asked: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if signal.SIGINT in asked:
                raise KeyboardInterrupt
            os.write(2, STOPPING)  # print is not safe in a handler
        asked.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    taken = [signal.SIGTERM]
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        taken.append(signal.SIGINT)
    previous: dict[int, Any] = {number: signal.signal(number, note) for number in taken}
    try:
        yield lambda: next(reversed(asked), None)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
