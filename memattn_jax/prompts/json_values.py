"""JSON files, one value per line or one document: a string is a prompt, an object has it under a key."""

import json
import re
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

from memattn_jax.errors import InputError
from memattn_jax.prompts.decode import LONGEST_LINE, Line, first_pieces
from memattn_jax.prompts.json_documents import DECODER, Document, Repeated, Value
from memattn_jax.prompts.record import NAMED, Number, Prompt, Wanted, is_text, judge, no_column, no_text, shown
from memattn_jax.text import printable

LOOKED_AT = 1000  # values, at least one of which must have the key
CHARACTERS = 2**20  # of these values, at most
# a first line after which a value that is whole on the second is an array's; "[INFO]" begins a log
ARRAY = re.compile(r"\[\s*[\[{]|.*[\[,]$")
MISSING = object()


def parse_json(lines: Iterator[Line], where: str, wanted: Wanted) -> Iterator[Prompt]:
    """The strings, or the objects' values under the wanted key.

    Raises:
      InputError: the first values are objects, and none has the key.
    """
    first = list(islice(lines, 1))
    while first and not first[-1].content.strip() and (following := next(lines, None)) is not None:
        first.append(following)
    second = next(lines, None)
    everything = chain(first, [] if second is None else [second], lines)
    values: Iterator[Value] = map(read_line, first_pieces(everything))
    if first and is_document(first[-1], second):
        document = Document(everything)
        values = iter(document)
        if wanted.extent is not None:
            wanted.extent.hold(document.used)
    for value in checked(values, where, wanted):
        yield prompt_of(value, where, wanted)


def is_document(first: Line, second: Line | None) -> bool:
    """Whether a value spans several lines, or a line is an array of all records."""
    begin = first.content.strip()
    if begin.startswith("["):
        if second is None or not second.content.strip():
            return True
        return read_line(first).error is not None and bool(ARRAY.match(begin) or read_line(second).error)
    if begin != "{" or second is None:
        return False
    return read_line(second).error is not None and second.content.strip()[:1] in ('"', "}")


def read_line(line: Line) -> Value:
    """The value of a line."""
    place = f"line {line.number}"
    text = line.content
    if not line.whole:
        return Value(place, None, f"has over {LONGEST_LINE} characters; is it text?")
    if not text.strip():
        return Value(place, None, "is empty", blank=True)
    if not is_text(text):
        return Value(place, None, "is not UTF-8; save the file as UTF-8")
    try:
        value, end = DECODER.raw_decode(text, len(text) - len(text.lstrip()))
    except RecursionError:
        return Value(place, None, "is nested too deeply")
    except ValueError:
        return Value(place, None, "is not JSON")
    return Value(place, None, "is not JSON") if text[end:].strip() else Value(place, value)


def checked(values: Iterator[Value], where: str, wanted: Wanted) -> Iterator[Value]:
    """The values; raises InputError where the first are objects, and none has a wanted key."""
    head: list[Value] = []
    size = 0
    for value in islice(values, LOOKED_AT):
        head.append(value)
        size += 0 if value.value is None else len(str(value.value))
        if size > CHARACTERS:
            break
    objects = [value.value for value in head if isinstance(value.value, dict)]
    prompts = any(isinstance(value.value, str | list) for value in head)
    for name in (wanted.column, *wanted.keep):
        if objects and not (prompts and name == wanted.column) and all(find(one, name) is MISSING for one in objects):
            names = list(dict.fromkeys(key for one in objects[:10] for key in one))
            raise InputError(f"{where}: {no_column(name, names)}")
    yield from chain(head, values)


def find(value: Any, name: str) -> Any:
    """The value under a key, or under its parts as a path if there is no such key; else `MISSING`."""
    if not isinstance(value, dict):
        return MISSING
    if name in value or "." not in name:
        return value.get(name, MISSING)
    head, _, tail = name.partition(".")
    return find(value.get(head), tail)


def prompt_of(value: Value, where: str, wanted: Wanted) -> Prompt:
    """The prompt of a record."""
    place = f"{where}: {value.place}"
    content = value.value
    if value.error is not None:
        return Prompt("", f"{place} {value.error}", place, (None,) * len(wanted.keep), value.blank)
    kept = tuple(as_kept(find(content, name)) for name in wanted.keep)
    if isinstance(content, Repeated) and wanted.column in content.names:
        return Prompt("", f"{place}: several keys '{printable(wanted.column, NAMED)}'", place, kept)
    found = find(content, wanted.column) if isinstance(content, dict) else content
    if found is MISSING:
        return Prompt("", f"{place}: {no_column(wanted.column, list(content))}", place, kept)
    if isinstance(found, str) and not is_text(found):
        return Prompt("", f"{place}: {no_text(found)}", place, kept)
    return judge(found, place, kept)


def as_kept(value: Any) -> str | None:
    """A kept value as text."""
    if value is MISSING or value is None:
        return None
    return shown(value if isinstance(value, str) else encode(value))


def encode(value: Any) -> str:
    """Encodes a value as JSON, with the original digits of numbers."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{encode(key)}: {encode(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(encode, value)) + "]"
    return value if isinstance(value, Number) else json.dumps(value, ensure_ascii=False)
