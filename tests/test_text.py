"""What a terminal is shown of users' text."""

import contextlib
import warnings
from dataclasses import dataclass

import pytest

from memattn_jax import InputError
from memattn_jax.commands import command as commands
from memattn_jax.text import printable


def test_what_steers_a_terminal_is_escaped():
    assert printable("a\x1b[31mred\x1b[0m\r\nb\tc\x00") == r"a\x1b[31mred\x1b[0m\x0d\x0ab\x09c\x00"
    assert printable("gpj.\u202eexe \u2028 \u200b \ufeff \ud800 \U000e0041") == (
        r"gpj.\u202eexe \u2028 \u200b \ufeff \ud800 \U000e0041"
    )
    assert printable("“日本の猫”\u3000é \N{CAT FACE}") == "“日本の猫”\u3000é \N{CAT FACE}"


@pytest.mark.parametrize("length", range(1, 12))
def test_a_length_counts_the_escapes(length):
    short = printable("ab\x1bcdefghij", length)
    assert len(short) <= length
    assert printable("ab\x1bcdefghij").startswith(short[:-1])
    assert short.endswith("…")
    assert printable("x" * length, length) == "x" * length
    assert printable("x" * 10**6, length) == "x" * (length - 1) + "…"


@dataclass(frozen=True)
class Nothing:
    """No options."""

    def check(self) -> None:
        """Nothing to check."""


def test_messages_are_printed_on_one_line(monkeypatch, capsys):
    """Errors and warnings quote prompts, columns and file names."""

    def fail(options: object) -> None:
        warnings.warn("a\x1b[2Jb", stacklevel=1)
        raise InputError("c\nd\x1b]0;title\x07")

    monkeypatch.setattr("sys.argv", ["detect"])
    monkeypatch.setattr(commands, "kept_programs", contextlib.nullcontext)
    warnings.simplefilter("always")
    with pytest.raises(SystemExit):
        commands.run_command("detect", Nothing, fail)
    assert capsys.readouterr().err.splitlines() == [r"warning: a\x1b[2Jb", r"error: c\x0ad\x1b]0;title\x07"]
