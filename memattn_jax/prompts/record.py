"""One record of a prompt log, and what makes a value a prompt."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from memattn_jax.errors import InputError, listed, nearest
from memattn_jax.text import printable

LONGEST = 131_072  # characters of a prompt; a model reads some 77 tokens, and a longer text is a damaged record
NAMED = 80  # characters of a file's column names in a message
Kept = tuple[str | None, ...]


class Prompt(NamedTuple):
    """One record of a source.

    Attributes:
      text: as the record holds it, surrounding whitespace included; "" where it could not be read.
      error: why it is no prompt, with file and line; None where it is one.
      place: file and line, or the record's number in the file.
      kept: the record's values in the columns that are carried through, as text; None where it has none.
      blank: whether the record holds no text at all, which is its error.
    """

    text: str
    error: str | None = None
    place: str = ""
    kept: Kept = ()
    blank: bool = False


class Wanted(NamedTuple):
    """What is read of each record.

    Attributes:
      column: holds the prompt.
      keep: columns that are carried through.
      note: receives what a user should know about how a file was read, one line each.
    """

    column: str = "prompt"
    keep: tuple[str, ...] = ()
    note: Callable[[str], object] = lambda line: None


class Number(str):
    """A number of a JSON file, digit by digit as it stands there."""


def is_text(text: str) -> bool:
    """False for half a character, as a JSON escape, a shell, or bytes of another encoding make it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def as_text(prompt: str) -> str:
    """The prompt; raises InputError where it is no valid text."""
    if not is_text(prompt):
        raise InputError(no_text(prompt))
    return prompt


def judge(value: Any, place: str, kept: Kept = ()) -> Prompt:
    """The record whose value in the prompt's column this is."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, bytes):
        value = value.decode(errors="surrogateescape")
    if value is None:
        return Prompt("", f"{place}: null instead of a prompt", place, kept, blank=True)
    if not isinstance(value, str) or isinstance(value, Number):
        return Prompt("", f"{place}: {kind(value)} instead of a text", place, kept)
    if len(value) > LONGEST:
        return Prompt("", f"{place}: {len(value)} characters; a prompt has at most {LONGEST}", place, kept)
    if not is_text(value):
        return Prompt("", f"{place} is not UTF-8; save the file as UTF-8", place, kept)
    if "\0" in value:
        return Prompt("", f"{place} holds NUL characters; is it text?", place, kept)
    if not value.strip():
        return Prompt(value, f"{place}: empty prompt", place, kept, blank=True)
    return Prompt(value, None, place, kept)


def shown(value: str | None) -> str | None:
    """A kept value as valid text: U+FFFD stands for what is none."""
    return None if value is None else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def kind(value: Any) -> str:
    """What a value that is no text is."""
    if isinstance(value, Mapping):
        return f"an object of {printable(', '.join(map(str, value)), NAMED)}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"a list of {len(value)}"
    return "true or false" if isinstance(value, bool) else "a number"


def no_text(prompt: str) -> str:
    """Says that a prompt holds half a character."""
    return f"the prompt '{printable(prompt, NAMED)}' is no valid text; UTF-8 is needed"


def no_column(name: str, names: Sequence[str]) -> str:
    """Says that a file lacks a column, and which it has."""
    close = nearest(name, names)
    hint = f" did you mean '{printable(close, NAMED)}'?" if close is not None else ""
    has = printable(listed(names, NAMED, name)) if names else "none"
    return f"no column '{printable(name, NAMED)}';{hint} there are {has}"


def only_column(name: str, names: Sequence[str], where: str) -> int:
    """Which column has the name.

    Raises:
      InputError: none, or several.
    """
    if name not in names:
        raise InputError(f"{where}: {no_column(name, names)}")
    if names.count(name) > 1:
        raise InputError(f"{where}: {names.count(name)} columns '{printable(name, NAMED)}'; rename all but one")
    return names.index(name)
