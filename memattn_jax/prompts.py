"""Prompt files: .txt with a line each, .jsonl, .csv, or standard input as lines."""

import csv
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from memattn_jax.errors import InputError

SUFFIXES = (".txt", ".jsonl", ".csv")


def read_prompts(source: str | Path, column: str = "prompt") -> list[str]:
    """Reads prompts; blank lines are skipped.

    Args:
      source: a file whose suffix tells its format, or "-" for standard input, a line each.
      column: the CSV column, or the key of JSON objects, that holds the prompt. A JSON line may also be a string.

    Raises:
      FileNotFoundError: no such file.
      InputError: unknown suffix, not UTF-8, a line or column that does not fit (it is named), or no prompt at all.
    """
    path = Path(source)
    if str(source) == "-":
        where, suffix, content = "standard input", ".txt", sys.stdin.buffer.read()
    elif path.suffix not in SUFFIXES:
        raise InputError(f"{path}: unknown prompt format {path.suffix!r}; there are {', '.join(SUFFIXES)}")
    elif not path.is_file():
        raise FileNotFoundError(f"no such prompt file: {path}")
    else:
        where, suffix, content = str(path), path.suffix, path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError(f"{where}: line {line} is not UTF-8; save the file as UTF-8") from None
    parse = {".txt": parse_lines, ".jsonl": parse_jsonl, ".csv": parse_csv}[suffix]
    prompts = [prompt.strip() for prompt in parse(text, column, where) if prompt.strip()]
    if not prompts:
        raise InputError(f"{where}: holds no prompt")
    return prompts


def as_text(prompt: str) -> str:
    """The prompt; raises InputError where it is no valid text, as a JSON escape or a shell may make it."""
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise InputError(f"the prompt {prompt!r} is no valid text; UTF-8 is needed") from None
    return prompt


def parse_lines(text: str, column: str, where: str) -> Iterator[str]:
    """The lines."""
    yield from io.StringIO(text)  # str.splitlines would also split at form feeds and U+2028


def parse_jsonl(text: str, column: str, where: str) -> Iterator[str]:
    """The strings, or the objects' values under `column`."""
    for number, line in enumerate(io.StringIO(text), start=1):
        if not line.strip():
            continue
        try:
            row: Any = json.loads(line)
        except ValueError:
            raise InputError(f"{where}: line {number} is not JSON") from None
        prompt = row.get(column) if isinstance(row, dict) else row
        if not isinstance(prompt, str):
            raise InputError(f"{where}: line {number} has no text under {column!r}")
        yield prompt


def parse_csv(text: str, column: str, where: str) -> Iterator[str]:
    """The values in `column`."""
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        names = reader.fieldnames or []
        if column not in names:
            raise InputError(f"{where}: no column {column!r}; its header has {', '.join(names) or 'no column'}")
        for row in reader:
            yield row[column] or ""
    except csv.Error as error:
        raise InputError(f"{where}: line {reader.line_num} is not CSV ({error})") from None
