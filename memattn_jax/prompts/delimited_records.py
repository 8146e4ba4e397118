r"""Records of CSV and similar formats; an error in one does not affect the next.

As in RFC 4180, quoted fields may contain delimiters, line ends and doubled quotes. A record that is invalid so is tried
with quotes escaped as \", as MySQL and Spark write them. If both fail, the first line is an error and reading resumes
at the line after it: an unclosed quote costs one record instead of the file.
"""

import re
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from memattn_jax.prompts.decode import LONGEST_LINE, Line
from memattn_jax.prompts.record import LONGEST

MOST_LINES = 1000  # of one record
ESCAPED = re.compile(r'\\(["\\])')


class Record(NamedTuple):
    """One record.

    Attributes:
      line: first line.
      last: last line.
      fields: None if the record cannot be read.
      error: why it cannot be read.
      raw: its text, without the last line's end.
      escaped: whether its quotes are escaped with backslashes.
    """

    line: int
    last: int
    fields: list[str] | None
    error: str | None
    raw: str
    escaped: bool = False


class MalformedError(Exception):
    """Text that is not valid in a field."""


class OpenQuoteError(MalformedError):
    """The text ends within quotes."""


def split(text: str, delimiter: str, *, spaced: bool = False, escaped: bool = False) -> list[str]:
    r"""The fields of a record.

    Args:
      text: the record, without its line end.
      delimiter: one character.
      spaced: ignore spaces after a delimiter.
      escaped: within quotes, a quote is \" and a backslash \\.

    Raises:
      OpenQuoteError: the last quote is not closed.
      MalformedError: a closing quote is followed by text.
    """
    if '"' not in text:
        fields = text.split(delimiter)
        return [field.lstrip(" ") for field in fields] if spaced else fields
    fields, at = [], 0
    while True:
        while spaced and text.startswith(" ", at):
            at += 1
        if text.startswith('"', at):
            end = closing_quote(text, at + 1, escaped)
            field = text[at + 1 : end]
            fields.append(ESCAPED.sub(r"\1", field) if escaped else field.replace('""', '"'))
            at = end + 1
            while text[at : at + 1] in (" ", "\t") and text[at] != delimiter:
                at += 1
            if at < len(text) and text[at] != delimiter:
                raise MalformedError('text after a closing quote; quotes in a field are written ""')
        else:
            end = text.find(delimiter, at)
            fields.append(text[at:] if end < 0 else text[at:end])
            at = len(text) if end < 0 else end
        if at >= len(text):
            return fields
        at += 1
        if at == len(text):
            return [*fields, ""]


def closing_quote(text: str, at: int, escaped: bool) -> int:
    """Position of the quote that closes the field whose content begins at `at`."""
    while (end := text.find('"', at)) >= 0:
        if escaped and (end - len(text[at:end].rstrip("\\")) - at) % 2:
            at = end + 1
        elif text.startswith('""', end):
            at = end + 2
        else:
            return end
    raise OpenQuoteError("an unclosed quote")


class Reader:
    """Iterates over the records of lines."""

    def __init__(self, lines: Iterator[Line], delimiter: str, *, spaced: bool = False):
        self.lines, self.delimiter, self.spaced = lines, delimiter, spaced
        self.waiting: deque[Line] = deque()  # read too far ahead

    def __iter__(self) -> Iterator[Record]:
        while (line := self.next_line()) is not None:
            yield self.record(line)

    def next_line(self) -> Line | None:
        """The next line, None at the end."""
        return self.waiting.popleft() if self.waiting else next(self.lines, None)

    def record(self, first: Line) -> Record:
        """The record that begins with a line."""
        if not first.whole:
            error = f"has over {LONGEST_LINE} characters; is it text?"
            return Record(first.number, first.number, None, error, "")
        taken = [first]
        try:
            return self.attempt(taken, escaped=False)
        except MalformedError as error:
            wrong = str(error)
        if any('\\"' in line.text for line in taken):
            try:
                return self.attempt([first], escaped=True)
            except MalformedError:
                pass
        return Record(first.number, first.number, None, wrong, first.content)

    def attempt(self, taken: list[Line], *, escaped: bool) -> Record:
        """Reads a record in one of two dialects; on MalformedError, all lines but the first remain to be read.

        Args:
          taken: the first line; the others that were looked at are added.
          escaped: whether quotes are escaped with backslashes.
        """
        first = taken[0]
        try:
            while True:
                text = "".join(line.text for line in taken).rstrip("\r\n").removeprefix("\ufeff")
                try:
                    fields = split(text, self.delimiter, spaced=self.spaced, escaped=escaped)
                except OpenQuoteError:
                    self.take_to_a_quote(taken)
                    continue
                return Record(first.number, taken[-1].number, fields, None, text, escaped)
        except MalformedError:
            self.waiting.extendleft(reversed(taken[1:]))
            raise

    def take_to_a_quote(self, taken: list[Line]) -> None:
        """Takes lines up to the next with a quote; raises OpenQuoteError if there is none nearby."""
        size = sum(len(line.text) for line in taken)
        while (line := self.next_line()) is not None:
            taken.append(line)
            size += len(line.text)
            if size > LONGEST or len(taken) > MOST_LINES or not line.whole:
                break
            if '"' in line.text:
                return
        raise OpenQuoteError("an unclosed quote")
