r"""CSV, TSV and their variants from spreadsheets: a header, then one prompt per record.

Nothing is lost silently: a record with more or fewer fields than the header is an error, since an unquoted comma or
line end may have cut its prompt. Only if the header names a single column and the field has no quotes, commas belong to
the prompt. A blank line is a record too. An unquoted \N is null, as databases write it.
"""

from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from memattn_jax.errors import InputError
from memattn_jax.prompts.decode import Line
from memattn_jax.prompts.delimited_records import MalformedError, Reader, Record, split
from memattn_jax.prompts.record import Prompt, Wanted, judge, only_column, shown
from memattn_jax.text import counted, printable

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "pipes"}
MANY_LINES = 2  # of one record, from which a missing quote is suspected


class Header(NamedTuple):
    """How a file's records are laid out.

    Attributes:
      delimiter: between fields.
      spaced: whether spaces follow the delimiter.
      names: of the columns, without surrounding spaces.
      single: whether there is one column, and no delimiter.
      prompt: index of the prompt's column.
      kept: indices of the columns to keep.
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
      delimiter: from the file's suffix; if the header has another, that is used, with a note.

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
            wanted.note(f"{where}: line {record.line}: quotes are escaped with backslashes")
        if record.last - record.line >= MANY_LINES and not long:
            span = f"lines {record.line} to {record.last} are one quoted record"
            wanted.note(f"{where}: {span}; if that is wrong, a quote is missing")
        escaped, long = escaped or record.escaped, long or record.last - record.line >= MANY_LINES
        yield prompt_of(record, header, where)


def read_header(first: Line, where: str, wanted: Wanted, delimiter: str) -> Header:
    """Parses the header with the first delimiter that yields the wanted columns.

    Raises:
      InputError: it cannot be read.
    """
    headers = []
    for candidate in dict.fromkeys([delimiter, *DELIMITERS]):
        with suppress(MalformedError):
            headers.append(header_of(split(first.content, candidate), candidate))
    if not headers:
        raise InputError(f"{where}: line {first.number} is not a header: '{printable(first.content, 80)}'")
    needed = {wanted.column, *wanted.keep}
    header = next((header for header in headers if needed <= set(header.names)), None)
    if header is None:
        return max(headers, key=lambda header: len(header.names))  # the error lists its names
    if header.delimiter != delimiter:
        name = DELIMITERS.get(header.delimiter, "others")
        wanted.note(f"{where}: fields are separated by {name}")
    return header


def header_of(fields: list[str], delimiter: str) -> Header:
    """The header without empty names from trailing delimiters."""
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
        remedy = "quote prompts that contain a delimiter or a line end"
        return Prompt("", f"{at}: {counted(len(fields), 'field')}, but the header has {width}; {remedy}", at, nothing)
    value, *kept = (field_value(fields[column], record) for column in (header.prompt, *header.kept))
    return judge(value, at, tuple(map(shown, kept)))


def field_value(field: str, record: Record) -> str | None:
    """The value of a field; None for null."""
    return None if field == "\\N" and '"\\N"' not in record.raw else field
