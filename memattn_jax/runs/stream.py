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
        waiter = ThreadPoolExecutor(1)
        try:
            for batch in batches:
                started = start(batch)
                running.append((batch, waiter.submit(self._finish, fetch, started, time.perf_counter())))
                if len(running) == AHEAD:
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


STOPPING = b"\ninterrupted: finishing what is in hand; Ctrl-C again stops at once\n"


@contextmanager
def asked_to_stop() -> Iterator[Callable[[], int | None]]:
    """The signal that asked for a stop, None before one has; within, the first one does not end the process.

    SIGTERM is what preempted machines send. SIGINT is a user's Ctrl-C; a second one raises KeyboardInterrupt, and where
    something else than Python's default handles it, it is left alone. Outside of the main thread, where Python takes no
    signals, none ever comes.
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
