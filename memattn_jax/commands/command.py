"""Parsing, error lines, exit statuses and interrupts, the same for every command."""

import ast
import contextlib
import dataclasses
import inspect
import io
import os
import re
import sys
import textwrap
from collections.abc import Callable
from itertools import pairwise
from threading import enumerate as threads
from threading import main_thread
from types import MappingProxyType
from typing import Any, NoReturn, Protocol, TypeVar

from memattn_jax.commands.host import (
    broken_streams,
    environment_default,
    kept_programs,
    lenient_streams,
    quiet_pipes,
    short_warnings,
)
from memattn_jax.errors import LIMIT, InputError
from memattn_jax.text import printable

FORMAT = 2  # version of the tables' columns; a run resumes only a table of the same version


class Checked(Protocol):
    """Options of a command: a dataclass that can check itself."""

    def check(self) -> None:
        """Raises InputError or OSError for invalid options, without importing JAX."""


Options = TypeVar("Options", bound=Checked)


def run_command(
    verb: str,
    options: type[Options],
    main: Callable[[Options], None],
    kept: str = "nothing is kept; the same command starts over",
    alone: bool = False,
) -> NoReturn:
    """Parses the command line into a dataclass, checks it, and runs `main`.

    Exit status: 0 done; 2 for a mistake of the user's, after one line on standard error; 130 interrupted, after one
    that says what is kept. Any other exception is a defect and keeps its traceback. The settings of a host program are
    restored afterwards.

    Args:
      verb: name of the command.
      options: dataclass of its options.
      main: what it does.
      kept: what an interrupt leaves behind; used for interrupts without a message of their own.
      alone: whether the process exists for this command only, so that an interrupt may end it while a thread still
        waits for the device. A host program can catch SystemExit and continue.
    """
    with (
        quiet_pipes(),
        lenient_streams(),
        environment_default("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1"),
    ):  # that PyTorch is missing
        parsed = parse(verb, options)
        try:
            parsed.check()
            with kept_programs(), short_warnings():
                main(parsed)
        except (InputError, OSError) as error:
            if isinstance(error, BrokenPipeError) and broken_streams():
                raise
            print(f"error: {printable(str(error))}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt as interrupt:
            print(f"interrupted: {printable(str(interrupt) or kept)}", file=sys.stderr, flush=True)
            if alone and any(not thread.daemon for thread in threads() if thread is not main_thread()):
                sys.stdout.flush()
                os._exit(130)  # a thread waits for the device, and Python would wait for it
            exec("")  # or Python ends by SIGINT where what was interrupted had been exec'ed, as modules do on import
            sys.exit(130)
        sys.exit(0)


def parse(verb: str, options: type[Options]) -> Options:
    """The command line as a dataclass; on a mistake, prints one line on standard error and exits."""
    import tyro

    join_help(options)
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(options, prog=f"memattn {verb}", config=(tyro.conf.DisallowNone,))
    except SystemExit as stop:
        if stop.code:
            print(f"error: {printable(parse_error(box.getvalue()), LIMIT)}", file=sys.stderr)
        raise


def join_help(options: Any) -> None:
    """Makes `--help` wrap each field's docstring to the terminal; tyro would keep the line breaks of the source."""
    texts: dict[str, str] = {}
    for part in reversed(options.__mro__[:-1]):
        with contextlib.suppress(OSError):  # without its source, tyro finds no docstrings either
            (tree,) = ast.parse(textwrap.dedent(inspect.getsource(part))).body
            for statement, text in pairwise(tree.body if isinstance(tree, ast.ClassDef) else ()):
                match statement, text:
                    case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(doc))):
                        texts[name] = " ".join(doc.split())
    for field in dataclasses.fields(options):
        if field.name in texts:
            field.metadata = MappingProxyType({"help": texts[field.name]})


def note(line: str) -> None:
    """Prints a note on standard error: something to know that needs no action."""
    print(f"note: {printable(line)}", file=sys.stderr)


NOT_A_NUMBER = re.compile(r"Error parsing (--\S+): (invalid literal for int|could not convert string to float).*: (.*)")

MISSING = re.compile(r"Missing from .*?: (--\S+).*")


def parse_error(box: str) -> str:
    """The message in the box that tyro draws around an error, as one line, with the option that was likely meant."""
    lines = [line.strip("│| ") for line in box.splitlines()]
    rules = [
        i for i, line in enumerate(lines) if not line.strip("─╰╯+-")
    ]  # the lines that make up the box, in Unicode or ASCII
    start = next((i + 1 for i, line in enumerate(lines) if line[:1] in "╭+-"), 0)
    end = next((i for i in rules if i > start), len(lines))
    message = " ".join(lines[start:end])
    if wrong := NOT_A_NUMBER.fullmatch(message):
        option, kind, value = wrong.groups()
        return f"{option} {value}: must be a {'whole ' * kind.endswith('int')}number"
    if missing := MISSING.fullmatch(message):
        return f"{missing[1]} is required; see --help"
    near = next((line.split()[0] for line in lines[end:] if re.match("--[a-z]", line)), None)
    meant = f"did you mean {near}? " if near is not None and message.startswith("Unrecognized") else ""
    return f"{message}; {meant}see --help"
