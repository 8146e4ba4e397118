"""Prompts from files, one at a time: a million take no more memory than one.

.txt, a line each; .jsonl; .csv; these three also with .gz; .parquet; a folder of such files; standard input, a line
each; and all of them in object storage, as gs://bucket/prompts.parquet.
"""

import csv
import gzip
import json
import sys
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from memattn_jax.errors import InputError
from memattn_jax.runs.store import is_local, open_filesystem

TEXT_SUFFIXES = (".txt", ".jsonl", ".csv")
SUFFIXES = (*TEXT_SUFFIXES, ".parquet", *(f"{suffix}.gz" for suffix in TEXT_SUFFIXES))
ROWS = 4096  # of a Parquet file, read at once
AHEAD = 2**20  # bytes of a Parquet column, read ahead


class Prompt(NamedTuple):
    """One prompt of a source.

    Attributes:
      text: stripped, not blank; "" where it could not be read.
      error: why it could not, with file and line; None where it could.
    """

    text: str
    error: str | None = None


def stream_prompts(source: str | Path, column: str = "prompt") -> Iterator[Prompt]:
    """Reads prompts as they are asked for; blank ones are skipped.

    What is wrong with one line is told in its prompt's `error`, and reading goes on; but where the very first prompt
    cannot be read, likely none can, and that is an error of the source.

    Args:
      source: a file whose suffix tells its format, a folder of such files, read in the order of their names, a URL of
        either, or "-" for standard input.
      column: the column of CSV and Parquet, or the key of JSON objects, that holds the prompt. A JSON line may also be
        a string.

    Raises:
      FileNotFoundError: no such file.
      InputError: unknown suffix, a damaged file, no such column, or no prompt at all.
    """
    found = False
    for prompt in read_source(str(source), column):
        if prompt.error is not None and not found:
            raise InputError(prompt.error)
        found = True
        yield prompt
    if not found:
        raise InputError(f"{'standard input' if source == '-' else source}: holds no prompt")


def read_prompts(source: str | Path, column: str = "prompt") -> list[str]:
    """All prompts of a source; arguments and errors as of `stream_prompts`, and one that cannot be read is an error."""
    prompts = []
    for prompt in stream_prompts(source, column):
        if prompt.error is not None:
            raise InputError(prompt.error)
        prompts.append(prompt.text)
    return prompts


def count_prompts(source: str | Path, column: str = "prompt") -> int:
    """How many `stream_prompts` gives."""
    return sum(1 for _ in stream_prompts(source, column))


def is_text(text: str) -> bool:
    """False for half a character, as a JSON escape, a shell, or bytes that are not UTF-8 make it."""
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


def no_text(prompt: str) -> str:
    """Says so."""
    return f"the prompt {prompt!r} is no valid text; UTF-8 is needed"


def read_source(source: str, column: str) -> Iterator[Prompt]:
    """The prompts of a file, a folder or standard input."""
    if source == "-":
        yield from parse_lines(text_of(sys.stdin.buffer), column, "standard input")
        return
    filesystem, root = open_filesystem(source)
    names = [(source, root)]
    if filesystem.isdir(root):
        files = (entry["name"] for entry in filesystem.ls(root, detail=True) if entry["type"] != "directory")
        inside = sorted(path for path in files if is_prompt_file(path) and not path.rsplit("/", 1)[-1].startswith("."))
        if not inside:
            raise InputError(f"{source}: no prompt file in this folder; {', '.join(SUFFIXES)} are read")
        names = [(f"{source.rstrip('/')}/{path.rsplit('/', 1)[-1]}", path) for path in inside]
    elif not filesystem.isfile(root):
        raise FileNotFoundError(f"no such prompt file: {source}")
    elif not is_prompt_file(source):
        suffix = Path(source).suffix
        raise InputError(f"{source}: unknown prompt format {suffix!r}; there are {', '.join(SUFFIXES)}")
    for where, path in names:
        with open(path, "rb") if is_local(source) else filesystem.open(path, "rb") as file:
            yield from read_file(file, column, where)


def is_prompt_file(path: str) -> bool:
    """By its name."""
    return path.endswith(SUFFIXES)


def read_file(file: IO[bytes], column: str, where: str) -> Iterator[Prompt]:
    """The prompts of one file."""
    if where.endswith(".parquet"):
        yield from parse_parquet(file, column, where)
        return
    parse = {"txt": parse_lines, "jsonl": parse_jsonl, "csv": parse_csv}[where.removesuffix(".gz").rsplit(".", 1)[-1]]
    try:
        raw: Any = gzip.GzipFile(fileobj=file) if where.endswith(".gz") else file
        yield from parse(text_of(raw), column, where)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{where}: damaged gzip file ({error})") from None


def text_of(raw: Iterable[bytes]) -> Iterator[str]:
    """Lines, which end at line feeds alone, not at U+2028; bytes that are not UTF-8 become half characters."""
    for number, line in enumerate(raw):
        text = line.decode("utf-8", errors="surrogateescape")
        yield text if number else text.removeprefix("\ufeff")


def parse_lines(lines: Iterator[str], column: str, where: str) -> Iterator[Prompt]:
    """The lines."""
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield checked(line, f"{where}: line {number}")


def checked(line: str, place: str) -> Prompt:
    """A prompt, or what is wrong with its bytes."""
    return Prompt(line.strip()) if is_text(line) else Prompt("", f"{place} is not UTF-8; save the file as UTF-8")


def parse_jsonl(lines: Iterator[str], column: str, where: str) -> Iterator[Prompt]:
    """The strings, or the objects' values under `column`."""
    for number, line in enumerate(lines, start=1):
        place = f"{where}: line {number}"
        if not is_text(line):
            yield checked(line, place)
            continue
        if not line.strip():
            continue
        try:
            row: Any = json.loads(line)
        except (ValueError, RecursionError):
            yield Prompt("", f"{place} is not JSON")
            continue
        prompt = row.get(column) if isinstance(row, dict) else row
        if not isinstance(prompt, str):
            yield Prompt("", f"{place} has no text under {column!r}")
        elif not is_text(prompt):
            yield Prompt("", f"{place}: {no_text(prompt)}")
        elif prompt.strip():
            yield Prompt(prompt.strip())


def parse_csv(lines: Iterator[str], column: str, where: str) -> Iterator[Prompt]:
    """The values in `column`."""
    reader = csv.DictReader(lines, strict=True)
    try:
        names = reader.fieldnames or []
        if column not in names:
            raise InputError(f"{where}: no column {column!r}; its header has {', '.join(names) or 'no column'}")
        for row in reader:
            prompt = row[column] or ""
            if prompt.strip():
                yield checked(prompt, f"{where}: line {reader.line_num}")
    except csv.Error as error:
        raise InputError(f"{where}: line {reader.line_num} is not CSV ({error})") from None


def parse_parquet(file: IO[bytes], column: str, where: str) -> Iterator[Prompt]:
    """The values in `column`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(file, pre_buffer=False, buffer_size=AHEAD)  # else it reads a column at once, whole
        names = table.schema_arrow.names
        if column not in names:
            raise InputError(f"{where}: no column {column!r}; it has {', '.join(names) or 'no column'}")
        if names.count(column) > 1:
            raise InputError(f"{where}: several columns {column!r}; rename all but one")
        kind = table.schema_arrow.field(column).type
        text = kind.value_type if pa.types.is_dictionary(kind) else kind
        if text not in (pa.string(), pa.large_string(), pa.string_view()):
            raise InputError(f"{where}: column {column!r} holds {kind}, not text")
        batches = table.iter_batches(ROWS, columns=[column])
        for number, value in enumerate((value for batch in batches for value in batch.column(0)), start=1):
            prompt = parse_value(value, f"{where}: row {number}")
            if prompt.text or prompt.error:
                yield prompt
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and (error.errno is not None or type(error) is not OSError):
            raise  # the disk's or the network's; pyarrow's have no number
        raise InputError(f"{where}: damaged Parquet file ({str(error).splitlines()[0]})") from None


def parse_value(value: Any, place: str) -> Prompt:
    """The prompt of an Arrow scalar; a null is blank."""
    try:
        return Prompt((value.as_py() or "").strip())
    except UnicodeDecodeError:
        return Prompt("", f"{place} is not UTF-8")
