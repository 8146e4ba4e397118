"""A side of a row lives in a process of its own, does nothing until it is asked, and says how long each call took."""

import multiprocessing
import re
import time
from collections.abc import Callable
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Call(NamedTuple):
    """Something to time.

    Attributes:
      run: does it, and returns when it is done.
      flops: of one run, None where nobody counts.
      result: numbers of the last run, to be compared with the other side's.
      compile_seconds: that making it took, None where it is compiled as it first runs, or not at all.
      profile: seconds of a run by kind of layer, see `kinds`.
    """

    run: Callable[[], Any]
    flops: Callable[[], float | None] = lambda: None
    result: Callable[[], Any] = lambda: None
    compile_seconds: float | None = None
    profile: Callable[[], dict[str, float]] = dict


def inputs(rows: int, size: int, channels: int, latents: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Latents [rows, size, size, latents] and text embeddings [rows, 77, channels], the same on both sides."""
    rng = np.random.default_rng(0)
    drawn = rng.standard_normal((rows, size, size, latents), np.float32)
    return drawn, rng.standard_normal((rows, 77, channels), np.float32)


def peak_bytes() -> int:
    """The most memory this process has held so far, as Linux counts it."""
    found = re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text(encoding="utf-8"))
    assert found is not None
    return int(found[1]) * 1024


def serve(connection: Connection, side: str, settings: dict[str, Any]) -> None:
    """The process: builds the calls of one side, then runs what it is told to."""
    module, function = side.split(":")
    try:
        calls: dict[str, Call] = getattr(import_module(f"benchmark.{module}"), function)(**settings)
        connection.send(None)
        for question, name in iter(connection.recv, None):
            if question == "run":
                start = time.perf_counter()
                calls[name].run()
                connection.send(time.perf_counter() - start)
            elif question == "rate":
                connection.send(import_module(f"benchmark.{module}").matmul_rate(name))
            else:
                call = calls[name]
                own = {"flops": call.flops, "result": call.result, "profile": call.profile, "peak_bytes": peak_bytes}
                own["device_bytes"] = lambda: import_module(f"benchmark.{module}").device_bytes()
                connection.send(call.compile_seconds if question == "compile_seconds" else own[question]())
    except Exception as error:  # to be raised where the numbers are wanted
        connection.send(error)


class Worker:
    """The near end of a side's process.

    Args:
      side: "module:function" of this package; the function returns the calls by name.
      settings: its arguments.
    """

    def __init__(self, side: str, settings: dict[str, Any]):
        context = multiprocessing.get_context("spawn")  # JAX and PyTorch have threads, which no fork survives
        self._near, far = context.Pipe()
        self._process = context.Process(target=serve, args=(far, side, settings), daemon=True)
        self._process.start()
        far.close()
        self._receive()

    def _receive(self) -> Any:
        answer = self._near.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def ask(self, question: str, name: str) -> Any:
        """Asks about a call: "run" for its seconds, or another answer of `serve`; or "rate", of a dtype."""
        self._near.send((question, name))
        return self._receive()

    def stop(self) -> None:
        """Ends the process, and waits for its memory to be free."""
        self._near.send(None)
        self._process.join()
