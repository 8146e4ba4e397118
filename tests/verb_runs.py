"""The verbs that score prompts, run in this process, with prompts to run them on."""

import io
import json
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from memattn_jax.commands import convert, detect, evaluate, generate
from memattn_jax.commands.command import run_command

VERBS = {"convert": convert, "detect": detect, "evaluate": evaluate, "generate": generate}
CLEAN = tuple(f"the {letter} and {other}" for letter in "abcdef" for other in ("hat", "o", "x y z"))
NEW = ("the cat", "Zebra 7", "an odd and long line on the hill in the land")
FAST = ("--steps", 4, "--batch-size", 4)


def command(verb: str, *arguments: object) -> tuple[int, list[str], list[str]]:
    """`python -m memattn_jax.<verb>`, in this process: exit status, lines of standard output, and of standard error
    but for the metrics."""
    printed, errors = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed), redirect_stderr(errors):
        patch.setattr(sys, "argv", [verb, *map(str, arguments)])
        warnings.simplefilter("always")  # as outside pytest, which restores the filters after each test
        with pytest.raises(SystemExit) as stopped:
            run_command(verb, VERBS[verb].Options, VERBS[verb].main)
    lines = [line for line in errors.getvalue().splitlines() if not line.startswith("{")]
    return stopped.value.code, printed.getvalue().splitlines(), lines


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
