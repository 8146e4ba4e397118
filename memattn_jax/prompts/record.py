"""One record of a prompt log, and which values are prompts."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from memattn_jax.errors import InputError, listed, nearest
from memattn_jax.prompts.extent import Extent
from memattn_jax.text import printable

LONGEST = 131_072  # characters of a prompt; models read 77 tokens, and a longer text is a damaged record
NAMED = 80  # characters of a file's column names in a message
Kept = tuple[str | None, ...]


class Prompt(NamedTuple):
    """One record of a source.

    Attributes:
      text: of the record, including surrounding whitespace; "" if it could not be read.
      error: why it is not a prompt, with file and line; None if it is one.
      place: file and line, or the record's number in the file.
      kept: the record's values in the kept columns, as text; None for missing ones.
      blank: whether the error is that the record has no text.
    """

    text: str
    error: str | None = None
    place: str = ""
    kept: Kept = ()
    blank: bool = False


class Wanted(NamedTuple):
    """What is read of each record.

    Attributes:
      column: name of the prompt's column.
      keep: columns to copy into the output.
      note: called with one-line notes on how a file was read.
      extent: told how much has been read; None where nobody asks.
    """

    column: str = "prompt"
    keep: tuple[str, ...] = ()
    note: Callable[[str], object] = lambda line: None
    extent: Extent | None = None


class Number(str):
    """A number in a JSON file, with its original digits."""


def is_text(text: str) -> bool:
    """False for text with lone surrogates, which come from JSON escapes, shells or other encodings."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def as_text(prompt: str) -> str:
    """The prompt; raises InputError if it is not valid text."""
    if not is_text(prompt):
        raise InputError(no_text(prompt))
    return prompt


def judge(value: Any, place: str, kept: Kept = ()) -> Prompt:
    """The record for a value in the prompt's column."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, bytes):
        value = value.decode(errors="surrogateescape")
    if value is None:
        return Prompt("", f"{place}: null instead of a prompt", place, kept, blank=True)
    if not isinstance(value, str) or isinstance(value, Number):
        return Prompt("", f"{place}: {kind(value)} instead of text", place, kept)
    if len(value) > LONGEST:
        return Prompt("", f"{place}: {len(value)} characters; at most {LONGEST} are allowed", place, kept)
    if not is_text(value):
        return Prompt("", f"{place} is not UTF-8; save the file as UTF-8", place, kept)
    if "\0" in value:
        return Prompt("", f"{place} contains NUL characters; is it text?", place, kept)
    if not value.strip():
        return Prompt(value, f"{place}: empty prompt", place, kept, blank=True)
    return Prompt(value, None, place, kept)


def valid_text(value: str) -> str:
    """Without lone surrogates, which become U+FFFD: those of a file's name that is not UTF-8, or of JSON escapes."""
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def shown(value: str | None) -> str | None:
    """A kept value as valid text."""
    return None if value is None else valid_text(value)


def kind(value: Any) -> str:
    """Describes a value that is not text."""
    if isinstance(value, Mapping):
        return f"an object of {printable(', '.join(map(str, value)), NAMED)}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"a list of {len(value)}"
    return "true or false" if isinstance(value, bool) else "a number"


def no_text(prompt: str) -> str:
    """The error for a prompt with lone surrogates."""
    return f"the prompt '{printable(prompt, NAMED)}' is not valid UTF-8 text"


def no_column(name: str, names: Sequence[str]) -> str:
    """The error for a missing column, with the existing ones."""
    close = nearest(name, names)
    hint = f" did you mean '{printable(close, NAMED)}'?" if close is not None else ""
    has = printable(listed(names, NAMED, name)) if names else "none"
    return f"no column '{printable(name, NAMED)}';{hint} it has {has}"


def only_column(name: str, names: Sequence[str], where: str) -> int:
    """Index of the column with a name.

    Raises:
      InputError: no such column, or several.
    """
    if name not in names:
        raise InputError(f"{where}: {no_column(name, names)}")
    if names.count(name) > 1:
        raise InputError(f"{where}: {names.count(name)} columns '{printable(name, NAMED)}'; rename all but one")
    return names.index(name)
