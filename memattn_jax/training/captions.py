"""Captions of a folder's images: metadata.jsonl, metadata.csv or metadata.parquet, in the imagefolder convention.

A record has a `file_name`, relative to the folder, and a `text`. A list of captions makes one pair of each. An empty
caption is kept as the empty prompt; null counts as missing.
"""

import codecs
import csv
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from memattn_jax.errors import InputError
from memattn_jax.pictures.skipped import UnusableError, first_line
from memattn_jax.text import printable

COLUMNS = ("file_name", "text")
LINE = re.compile(r"[^\r\n]*(?:\r\n|\n|\r)|[^\r\n]+")
KINDS = {bool: "true or false", int: "a number", float: "a number", list: "a list in a list", dict: "an object"}


class Entry(NamedTuple):
    """A pair as the metadata file records it.

    Attributes:
      place: position in the file, such as "line 3".
      picture: name of the image file, or number of its row.
      caption: the recorded value, most often text.
      problem: why the record could not be read; None if it could.
    """

    place: str
    picture: Any
    caption: Any
    problem: UnusableError | None = None


def read_captions(path: Path) -> list[Entry]:
    """All entries of a metadata file.

    Raises:
      InputError: a format other than the suffix says, or a table without `file_name` or `text`.
    """
    read = {".jsonl": parse_jsonl, ".csv": parse_csv, ".parquet": parse_parquet}[path.suffix.lower()]
    return [entry for record in read(path) for entry in one_a_caption(record)]


def one_a_caption(entry: Entry) -> Iterator[Entry]:
    """One entry for each caption, where there is a list of them."""
    if not isinstance(entry.caption, list):
        yield entry
        return
    if not entry.caption:
        yield broken(entry.place, "an empty list of captions")
    for number, caption in enumerate(entry.caption, start=1):
        yield entry._replace(caption=caption, place=f"{entry.place}, caption {number}")


def checked(caption: Any) -> str:
    """The caption as text.

    Raises:
      UnusableError: it is not text.
    """
    if isinstance(caption, bytes):  # of a binary column
        caption = caption.decode(errors="surrogateescape")
    if caption is None:
        raise UnusableError("no caption (null)")
    if not isinstance(caption, str):
        raise UnusableError(f"the caption is {KINDS.get(type(caption), type(caption).__name__)}, not text")
    try:
        caption.encode()
    except UnicodeEncodeError:
        raise UnusableError("the caption is not UTF-8; save the file as UTF-8") from None
    return caption


def read_text(path: Path) -> str:
    """Decodes UTF-8, or UTF-16 with a byte-order mark; invalid bytes become lone surrogates."""
    data = path.read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", errors="replace")
    return data.decode("utf-8", errors="surrogateescape").removeprefix("\ufeff")


def parse_jsonl(path: Path) -> Iterator[Entry]:
    """One entry per line; JSON may contain other characters that end a line in Python, such as U+2028."""
    for number, line in enumerate(LINE.findall(read_text(path)), start=1):
        place = f"line {number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            yield broken(place, "not JSON")
            continue
        if not isinstance(row, dict):
            yield broken(place, "not a JSON object")
        elif missing := [key for key in COLUMNS if key not in row]:
            yield broken(place, f"no {missing[0]!r}, only {', '.join(row) or 'nothing'}")
        else:
            yield Entry(place, row["file_name"], row["text"])


def parse_csv(path: Path) -> Iterator[Entry]:
    """One entry per record; fields are separated by commas, semicolons or tabs, as in the header.

    After a record that cannot be read, reading resumes at the line after its first one, so that an unclosed quote costs
    one record instead of the file.
    """
    lines = LINE.findall(read_text(path))
    headers = {mark: [name.strip() for name in next(csv.reader(lines[:1], delimiter=mark), [])] for mark in ",;\t"}
    mark = max(headers, key=lambda mark: len(set(headers[mark]) & set(COLUMNS)))
    header = headers[mark]
    check_columns(path, header)
    name, text = (header.index(column) for column in COLUMNS)
    at = 1
    while at < len(lines):
        begun, reader = at, csv.reader(itertools.islice(lines, at, None), delimiter=mark, strict=True)
        try:
            for row in reader:
                place, at = f"line {at + 1}", begun + reader.line_num
                if len(row) == len(header):
                    yield Entry(place, row[name], row[text])
                elif row:
                    yield broken(place, "another number of fields than the header")
        except csv.Error as error:
            yield broken(f"line {at + 1}", f"not CSV ({error})")
            at += 1


def broken(place: str, reason: str) -> Entry:
    """A record that cannot be read."""
    return Entry(place, None, None, UnusableError(reason))


def parse_parquet(path: Path) -> Iterator[Entry]:
    """One entry per row."""
    table = read_table(path, COLUMNS)
    for number in range(table.num_rows):
        yield Entry(f"row {number + 1}", *(value_of(table[name][number]) for name in COLUMNS))


def read_table(path: Path, columns: tuple[str, ...]) -> Any:
    """Columns of a Parquet file, memory-mapped.

    Raises:
      InputError: not a Parquet file, a damaged one, or one without these columns.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path, memory_map=True)
        check_columns(path, file.schema_arrow.names, columns)
        return file.read(columns=list(columns))
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # an error of the disk; those of pyarrow have no number
        raise InputError(f"{path}: not a Parquet file, or a damaged one ({first_line(error)})") from None


def value_of(scalar: Any) -> Any:
    """An Arrow scalar as a Python value; a lone surrogate, which `checked` refuses, where that fails."""
    try:
        return scalar.as_py()
    except (ValueError, OverflowError):
        return "\udc80"


def check_columns(path: Path, names: list[str], columns: tuple[str, ...] = COLUMNS) -> None:
    """Raises InputError unless there is one column of each name."""
    for column in columns:
        if names.count(column) != 1:
            count = "several columns" if column in names else "no column"
            raise InputError(f"{path}: {count} {column!r}; it has {printable(', '.join(names), 80) or 'none'}")
