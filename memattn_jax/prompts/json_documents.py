"""JSON as a single document: an array of records, or objects that span several lines."""

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from memattn_jax.prompts.decode import LONGEST_LINE, Line
from memattn_jax.prompts.record import Number

BLANK = re.compile(r"[\s,\ufeff]*")
NEXT = {  # by first character: matches the end of such a record and the beginning of another
    "{": re.compile(r"}\s*,?\s*(?={)"),
    "[": re.compile(r"\]\s*,?\s*(?=\[)"),
    '"': re.compile(r'"\s*,\s*(?=")'),
}
COMMA = re.compile(",")
KEY = re.compile(r"\s*:")  # follows a string that is no record, but a key of an object in a malformed one
PART = 2**16  # characters read at once
TOKEN = 16  # characters in a literal, or between two objects, at most


class Value(NamedTuple):
    """One record.

    Attributes:
      place: "line 3" or "record 3".
      value: None if it cannot be read.
      error: why it cannot be read.
      blank: whether it is an empty line.
    """

    place: str
    value: Any
    error: str | None = None
    blank: bool = False


class Repeated(dict[str, Any]):
    """An object with repeated keys, which are in `names`."""

    names: set[str] = set()  # noqa: RUF012


def make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; a `Repeated` one if a key is ambiguous."""
    content = dict(pairs)
    if len(content) == len(pairs):
        return content
    repeated = Repeated(content)
    keys = [key for key, _ in pairs]
    repeated.names = {key for key in keys if keys.count(key) > 1}
    return repeated


DECODER = json.JSONDecoder(
    object_pairs_hook=make_object, parse_int=Number, parse_float=Number, parse_constant=Number
)  # keeps the digits: ids may have more than a float can hold


class Document:
    """Records of a document, read a part at a time."""

    def __init__(self, lines: Iterator[Line]):
        self.lines = lines
        self.text, self.at = "", 0  # text in memory, and where the unparsed part begins
        self.passed = 0  # characters before it
        self.lost = False  # whether everything after a malformed record was lost

    def __iter__(self) -> Iterator[Value]:
        record, inside = 0, False
        while self.skip_blank():
            if self.text[self.at] in ("]" if inside else "["):
                inside = not inside
                self.at += 1
                continue
            record += 1
            yield self.value(f"record {record}")
        if inside and not self.lost:
            yield Value(f"record {record + 1}", None, "is missing: the array is not closed; is the file truncated?")

    def more(self) -> bool:
        """Reads at least as much as is left, so that repeated parsing stays linear in the file's size."""
        left = self.text[self.at :]
        new, size = [], 0
        for line in self.lines:
            new.append(line.text)
            size += len(line.text)
            if size >= max(len(left), PART):
                break
        if new:
            self.passed += self.at
            self.text, self.at = left + "".join(new), 0
        return bool(new)

    def used(self) -> float:
        """Share of the text read so far that is parsed."""
        return (self.passed + self.at) / (self.passed + len(self.text))

    def skip_blank(self) -> bool:
        """Advances to the next record or bracket; returns whether there is one."""
        while True:
            self.at = BLANK.match(self.text, self.at).end()  # type: ignore[union-attr]
            if self.at < len(self.text):
                return True
            if not self.more():
                return False

    def value(self, place: str) -> Value:
        """The record that begins here."""
        while True:
            try:
                value, end = DECODER.raw_decode(self.text, self.at)
            except RecursionError:
                return Value(place, None, f"is nested too deeply{self.resume(self.at + 1)}")
            except json.JSONDecodeError as error:
                cut = error.pos > len(self.text) - TOKEN or error.msg.startswith("Unterminated string")
                if cut and len(self.text) - self.at < LONGEST_LINE and self.more():
                    continue
                return Value(place, None, f"is not JSON{self.resume(max(error.pos, self.at + 1))}")
            if end > len(self.text) - TOKEN and self.more():  # a number may continue, and a string prove to be a key
                continue
            if isinstance(value, str) and KEY.match(self.text, end):
                return Value(place, None, f"is not JSON{self.resume(end, '{')}")
            self.at = end
            return Value(place, value)

    def resume(self, after: int, begin: str | None = None) -> str:
        """Advances to where the next record may begin; returns an addition to the error if there is none.

        Args:
          after: the place to search from.
          begin: first character of the malformed record; by default the one that is there.
        """
        pattern = NEXT.get(begin or self.text[self.at], COMMA)
        self.at = after
        while (found := pattern.search(self.text, self.at)) is None:
            self.at = max(self.at, len(self.text) - TOKEN)
            if not self.more():
                self.at, self.lost = len(self.text), True
                return ", and after it no record was found"
        self.at = found.end()
        return ""
