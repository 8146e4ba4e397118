"""Streams the records of a source in order."""

import sys
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import IO

from memattn_jax.errors import InputError
from memattn_jax.prompts.decode import first_pieces, lines_of
from memattn_jax.prompts.delimited import parse_delimited
from memattn_jax.prompts.extent import Extent
from memattn_jax.prompts.files import Source, find_files, format_of
from memattn_jax.prompts.json_values import parse_json
from memattn_jax.prompts.plain import parse_lines
from memattn_jax.prompts.record import Prompt, Wanted
from memattn_jax.prompts.records import AHEAD, Records
from memattn_jax.storage import is_local

CHECKED = 1000  # files of a folder that are checked before the first is read


def silent(line: str) -> None:
    """Discards a note."""


def stream_prompts(
    source: str | Path,
    column: str = "prompt",
    keep: tuple[str, ...] = (),
    note: Callable[[str], object] = silent,
) -> Records:
    """Reads prompts lazily, one for each record of the source, and each once.

    A bad record has an `error`, and reading continues with the next one. Only a source whose records are few and all
    bad is an error itself.

    Args:
      source: a file whose suffix is its format; a folder, read in the order of its files' paths; a URL of either; or
        "-" for standard input.
      column: the column of CSV and Parquet, or the key of JSON objects, with the prompt; `a.b` is field b of the
        objects
        in a. A JSON line may also be a string.
      keep: columns, or keys, whose values are returned as text.
      note: called with one-line notes on how a file was read.

    Returns:
      An iterator, whose `total` says how many records there will be.

    Raises:
      FileNotFoundError: no such file; raised by the first record, like the others.
      InputError: an unknown suffix, a damaged file, a missing column, or no prompts.
    """
    piped = source == "-"
    extent = None if piped else Extent()
    records = read_source(str(source), Wanted(column, keep, note, extent))
    return Records(with_prompts(records, "standard input" if piped else str(source)), extent)


def with_prompts(records: Iterator[Prompt], where: str) -> Iterator[Prompt]:
    """The records; raises InputError where they are fewer than `AHEAD`, and none is a prompt."""
    head: list[Prompt] = []
    for prompt in records:
        head.append(prompt)
        if prompt.error is None or len(head) == AHEAD:
            break
    else:
        refuse(head, where)
    yield from chain(head, records)


def refuse(records: list[Prompt], where: str) -> None:
    """Raises InputError for a source without any prompt."""
    wrong = [record.error for record in records if not record.blank]
    if not wrong:
        raise InputError(f"{where}: has no prompts")
    others = f"; the other {len(records) - 1} of its records are unreadable too" if len(records) > 1 else ""
    raise InputError(f"{wrong[0]}{others}")


def read_prompts(source: str | Path, column: str = "prompt") -> list[str]:
    """The prompts of a source, without its blank records.

    Arguments and errors are those of `stream_prompts`; an unreadable record is an error too.
    """
    prompts = []
    for prompt in stream_prompts(source, column):
        if prompt.error is None:
            prompts.append(prompt.text)
        elif not prompt.blank:
            raise InputError(prompt.error)
    return prompts


def read_source(source: str, wanted: Wanted) -> Iterator[Prompt]:
    """The records of a file, a folder or standard input."""
    if source == "-":
        where = "standard input"
        with lines_of(sys.stdin.buffer, where, wanted) as lines:
            yield from parse_lines(first_pieces(lines), where, wanted)
        return
    files = find_files(source, wanted)
    if is_local(source):
        for file in files[1:CHECKED]:  # a column missing in the last file should not end a run after hours
            next(read_one(file, wanted._replace(note=silent, extent=None)), None)
    extent = wanted.extent
    sizes = [0 if extent is None else file.filesystem.size(file.path) or 0 for file in files]
    for file, size in zip(files, sizes, strict=True):
        if extent is not None:
            extent.size = sum(sizes)
            extent.begin(size)
        yield from read_one(file, wanted)


def read_one(source: Source, wanted: Wanted) -> Iterator[Prompt]:
    """The records of one file."""
    path, where = source.path, source.where
    with open(path, "rb") if is_local(where) else source.filesystem.open(path, "rb") as file:
        yield from read_file(file, where, wanted)


def read_file(file: IO[bytes], where: str, wanted: Wanted) -> Iterator[Prompt]:
    """The records of an open file whose name is `where`."""
    form = format_of(where)
    if form == "parquet":
        from memattn_jax.prompts.parquet import parse_parquet  # imports too slow for --help

        yield from parse_parquet(file, where, wanted)
        return
    with lines_of(file, where, wanted) as lines:
        if form == "json":
            yield from parse_json(lines, where, wanted)
        elif form == "txt":
            yield from parse_lines(first_pieces(lines), where, wanted)
        else:
            yield from parse_delimited(first_pieces(lines), where, wanted, "\t" if form == "tsv" else ",")
