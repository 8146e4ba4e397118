"""What the `python -m memattn_jax.<verb>` commands share."""

import contextlib
import io
import os
import re
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn, Protocol, TypeVar

from memattn_jax.errors import LIMIT, InputError, RepeatedWarning
from memattn_jax.text import printable

WARNED = 20  # a prompt log may hold many prompts that are cut
FORMAT = 2  # of tables: their columns and what these mean; a run goes on with its own only


class Checked(Protocol):
    """Options of a command, a dataclass."""

    def check(self) -> None:
        """Raises InputError or OSError for what cannot be, without importing JAX."""


Options = TypeVar("Options", bound=Checked)


def run_command(
    verb: str,
    options: type[Options],
    main: Callable[[Options], None],
    kept: str = "nothing is kept; the same command starts over",
) -> NoReturn:
    """Parses the command line into a dataclass, checks it, and runs `main`.

    Exit status: 0 done; 2 for what the user got wrong, after one line on standard error; 130 interrupted, after one
    that says what is kept: the interrupt's own text or `kept`. Any other exception is a defect and keeps its traceback.
    """
    import tyro

    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it misses PyTorch, which nothing here needs
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a prompt may hold what the terminal's encoding does not
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            parsed = tyro.cli(options, prog=f"python -m memattn_jax.{verb}", config=(tyro.conf.DisallowNone,))
    except SystemExit as stop:
        if stop.code:
            print(f"error: {printable(parse_error(box.getvalue()), LIMIT)}", file=sys.stderr)
        raise
    try:
        parsed.check()
        keep_compiled_programs()
        show_warnings()
        main(parsed)
    except (InputError, OSError) as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as interrupt:
        print(f"interrupted: {printable(str(interrupt) or kept)}", file=sys.stderr, flush=True)
        if any(not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()):
            sys.stdout.flush()
            os._exit(130)  # a thread waits for the device, and Python would wait for it
        exec("")  # or Python ends by SIGINT where what was interrupted had been exec'ed, as modules do on import
        sys.exit(130)
    sys.exit(0)


def note(line: str) -> None:
    """Says on standard error what a user should know, and need not act on."""
    print(f"note: {printable(line)}", file=sys.stderr)


def show_warnings() -> None:
    """Has warnings printed as one line each, and no more than `WARNED` from one place in the code."""
    shown: Counter[tuple[str, int]] = Counter()

    def show(message: Warning | str, category: type[Warning], filename: str, line: int, *_: object) -> None:
        shown[filename, line] += 1
        if shown[filename, line] > 1 and issubclass(category, RepeatedWarning):
            return
        if shown[filename, line] <= WARNED:
            print(f"warning: {printable(str(message))}", file=sys.stderr)
        elif shown[filename, line] == WARNED + 1:
            print("warning: more of these are not shown", file=sys.stderr)

    warnings.showwarning = show  # type: ignore[assignment]


def keep_compiled_programs() -> None:
    """Has JAX keep what it compiles in the user's cache folder, at most 1 GB, so that the next start is quick.

    The environment's JAX_COMPILATION_CACHE_DIR names another folder; JAX_ENABLE_COMPILATION_CACHE=false keeps nothing.
    """
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(caches / "memattn_jax" / "xla"))
        jax.config.update("jax_compilation_cache_max_size", 2**30)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


NOT_A_NUMBER = re.compile(r"Error parsing (--\S+): (invalid literal for int|could not convert string to float).*: (.*)")


def parse_error(box: str) -> str:
    """The message in the box that tyro draws around an error, as one line, with the option that was likely meant."""
    lines = [line.strip("│| ") for line in box.splitlines()]
    rules = [i for i, line in enumerate(lines) if not line.strip("─╰╯+-")]  # lines drawn, in either alphabet
    start = next((i + 1 for i, line in enumerate(lines) if line[:1] in "╭+-"), 0)
    end = next((i for i in rules if i > start), len(lines))
    message = " ".join(lines[start:end])
    if wrong := NOT_A_NUMBER.fullmatch(message):
        option, kind, value = wrong.groups()
        return f"{option} {value}: a {'whole ' * kind.endswith('int')}number is needed"
    near = next((line.split()[0] for line in lines[end:] if re.match("--[a-z]", line)), None)
    meant = f"did you mean {near}? " if near is not None and message.startswith("Unrecognized") else ""
    return f"{message}; {meant}see --help"


def versions() -> dict[str, str]:
    """Versions of the packages that decide the numbers."""
    return {name: version(name) for name in ("memattn_jax", "jax", "jaxlib", "flax", "transformers")}
