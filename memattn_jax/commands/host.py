"""Settings of the process that a command changes and restores: the process may be a user's own program."""

import contextlib
import io
import os
import select
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from memattn_jax.errors import RepeatedWarning
from memattn_jax.settings import jax_settings
from memattn_jax.text import printable

READER_LEFT = 141  # exit status that shells report where SIGPIPE ended a program
WARNED = 20  # a prompt log may contain many prompts that are cut


@contextlib.contextmanager
def environment_default(name: str, value: str) -> Iterator[None]:
    """Sets an environment variable temporarily, unless it is set already."""
    if name in os.environ:
        yield
        return
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name, None)


def broken_streams() -> list[TextIO]:
    """Standard output and standard error, as far as they are pipes that nobody reads any more."""
    broken = []
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(io.UnsupportedOperation):  # a host program may have put a buffer in its place
            poll = select.poll()
            poll.register(stream.fileno(), 0)  # no event is asked for; errors are reported always
            if poll.poll(0):
                broken.append(stream)
    return broken


@contextlib.contextmanager
def quiet_pipes() -> Iterator[None]:
    """Exits without a message once the reader of the output has gone, as in `memattn detect --help | head`."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not (streams := broken_streams()):
            raise
        for stream in streams:  # or Python would write what they still hold when it ends, and fail again
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        sys.exit(READER_LEFT)


@contextlib.contextmanager
def lenient_streams() -> Iterator[None]:
    """Replaces characters that the terminal's encoding lacks; a prompt may contain some."""
    streams = [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, io.TextIOWrapper)]
    before = [stream.errors for stream in streams]
    for stream in streams:
        stream.reconfigure(errors="replace")
    try:
        yield
    finally:
        for stream, errors in zip(streams, before, strict=True):
            stream.reconfigure(errors=errors)


@contextlib.contextmanager
def short_warnings() -> Iterator[None]:
    """Prints each warning as one line, and at most `WARNED` from the same place in the code."""
    shown: Counter[tuple[str, int]] = Counter()

    def show(message: Warning | str, category: type[Warning], filename: str, line: int, *_: object) -> None:
        shown[filename, line] += 1
        if shown[filename, line] > 1 and issubclass(category, RepeatedWarning):
            return
        if shown[filename, line] <= WARNED:
            print(f"warning: {printable(str(message))}", file=sys.stderr)
        elif shown[filename, line] == WARNED + 1:
            print("warning: more of these are not shown", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show  # type: ignore[assignment]
        yield


@contextlib.contextmanager
def kept_programs() -> Iterator[None]:
    """Makes JAX cache compiled programs in the user's cache folder, at most 1 GB, so that the next start is quick.

    A folder that the host program or the environment's JAX_COMPILATION_CACHE_DIR names is left alone;
    JAX_ENABLE_COMPILATION_CACHE=false keeps nothing.
    """
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    name = "jax_compilation_cache_dir"
    if name.upper() in os.environ or getattr(jax.config, name) is not None:
        yield
        return
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    settings = {
        name: str(caches / "memattn_jax" / "xla"),
        "jax_compilation_cache_max_size": 2**30,
        "jax_persistent_cache_min_compile_time_secs": 0.2,
    }
    try:
        with jax_settings(**settings):
            compilation_cache.reset_cache()  # JAX decides at the first program whether and where it keeps any
            yield
    finally:
        compilation_cache.reset_cache()
