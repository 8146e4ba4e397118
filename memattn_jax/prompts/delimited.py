r"""CSV, TSV and what spreadsheets make of them: a header, then a prompt a record.

Nothing of a record is lost in silence: one with more or fewer fields than the header is no prompt, since a comma or a
line end that should be quoted may have cut its prompt. Only where the header names a single column, and a record's
field has no quotes, its commas belong to the prompt. A blank line is a record too. An unquoted \N is null, as databases
write it.
"""

from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from memattn_jax.errors import InputError
from memattn_jax.prompts.decode import Line
from memattn_jax.prompts.delimited_records import MalformedError, Reader, Record, split
from memattn_jax.prompts.record import Prompt, Wanted, judge, only_column, shown
from memattn_jax.text import printable

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "pipes"}
MANY_LINES = 2  # of one record; it may be a quote that is not closed, and one far below


class Header(NamedTuple):
    """How a file's records are laid out.

    Attributes:
      delimiter: between fields.
      spaced: spaces follow it.
      names: of the columns, without spaces around them.
      single: whether there is one column, and no delimiter.
      prompt: which of them holds it.
      kept: which are carried through.
    """

    delimiter: str
    spaced: bool
    names: list[str]
    single: bool
    prompt: int = 0
    kept: tuple[int, ...] = ()


def parse_delimited(lines: Iterator[Line], where: str, wanted: Wanted, delimiter: str) -> Iterator[Prompt]:
    """The values in the wanted column.

    Args:
      lines: of the file.
      where: the file's name.
      wanted: columns.
      delimiter: what the file's suffix says; where the header shows another, that is taken, and noted.

    Raises:
      InputError: no such column, or several.
    """
    first = next((line for line in lines if line.content.strip()), None)
    if first is not None and first.content[:-1].lower() == "sep=":  # Excel's
        delimiter, first = first.content[-1], next(lines, None)
    if first is None:
        return
    header = read_header(first, where, wanted, delimiter)
    prompt, *kept = (only_column(name, header.names, where) for name in (wanted.column, *wanted.keep))
    header = header._replace(prompt=prompt, kept=tuple(kept))
    escaped = long = False
    for record in Reader(lines, header.delimiter, spaced=header.spaced):
        if record.escaped and not escaped:
            wanted.note(f"{where}: line {record.line}: quotes escaped with backslashes, read so")
        if record.last - record.line >= MANY_LINES and not long:
            span = f"lines {record.line} to {record.last} are one record, in quotes"
            wanted.note(f"{where}: {span}; if they are several, a quote is missing")
        escaped, long = escaped or record.escaped, long or record.last - record.line >= MANY_LINES
        yield prompt_of(record, header, where)


def read_header(first: Line, where: str, wanted: Wanted, delimiter: str) -> Header:
    """The header in a line; its delimiter is the first with which it has the wanted columns.

    Raises:
      InputError: it cannot be read.
    """
    headers = []
    for candidate in dict.fromkeys([delimiter, *DELIMITERS]):
        with suppress(MalformedError):
            headers.append(header_of(split(first.content, candidate), candidate))
    if not headers:
        raise InputError(f"{where}: line {first.number} is no header: '{printable(first.content, 80)}'")
    needed = {wanted.column, *wanted.keep}
    header = next((header for header in headers if needed <= set(header.names)), None)
    if header is None:
        return max(headers, key=lambda header: len(header.names))  # whose names an error lists
    if header.delimiter != delimiter:
        name = DELIMITERS.get(header.delimiter, "others")
        wanted.note(f"{where}: its fields are separated by {name}")
    return header


def header_of(fields: list[str], delimiter: str) -> Header:
    """The header, without the empty names that delimiters at its end make."""
    single = len(fields) == 1
    while len(fields) > 1 and not fields[-1].strip():
        fields = fields[:-1]
    spaced = any(field.startswith(" ") for field in fields[1:])
    return Header(delimiter, spaced, [field.strip().strip('"').strip() for field in fields], single)


def prompt_of(record: Record, header: Header, where: str) -> Prompt:
    """The prompt of a record."""
    lines = f"line {record.line}" if record.last == record.line else f"lines {record.line} to {record.last}"
    at = f"{where}: {lines}"
    nothing = (None,) * len(header.kept)
    if record.fields is None:
        return Prompt("", f"{at}: {record.error}", at, nothing)
    fields, width = record.fields, len(header.names)
    if not record.raw.strip():
        return judge(record.raw if width == 1 else "", at, nothing)
    if width > 1 and [field.strip() for field in fields] == header.names:
        return Prompt("", f"{at} repeats the header", at, nothing)
    if header.single and header.delimiter.join(fields) == record.raw:  # no field is quoted
        fields = [record.raw]
    elif len(fields) < width or any(field.strip() for field in fields[width:]):
        remedy = "quote prompts that hold a delimiter or a line end"
        return Prompt("", f"{at}: {len(fields)} fields, and the header has {width}; {remedy}", at, nothing)
    value, *kept = (field_value(fields[column], record) for column in (header.prompt, *header.kept))
    return judge(value, at, tuple(map(shown, kept)))


def field_value(field: str, record: Record) -> str | None:
    """A field; None where it is null."""
    return None if field == "\\N" and '"\\N"' not in record.raw else field
