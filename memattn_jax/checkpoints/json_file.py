"""Reads the small JSON files of a checkpoint."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from memattn_jax.checkpoints.mapped import refuse_page, refuse_pipe
from memattn_jax.errors import InputError
from memattn_jax.text import printable

LARGEST = 2**24  # bytes
VALUES = 2**20  # in one text; each takes up to a hundred bytes when parsed, although it may be two in the text


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object from a file.

    Raises:
      InputError: no such file, a git-lfs pointer or web page in its place, no JSON object, or one of megabytes.
    """
    refuse_pipe(path)
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    refuse_page(path, data[:64])
    if len(data) > LARGEST:
        raise InputError(f"{path}: too large, a config has less than {LARGEST >> 20} MB")
    try:
        return parse_json(data)
    except ValueError as error:
        raise InputError(f"{path}: not a JSON file ({error})") from None


def parse_json(data: bytes) -> dict[str, Any]:
    """The object of a JSON text of at most `LARGEST` bytes.

    Raises:
      ValueError: not JSON, not an object, a key that comes twice, or so many values that they would take gigabytes.
    """
    if sum(map(data.count, (b",", b"[", b"{"))) > VALUES:
        raise ValueError(f"over {VALUES:,} values")
    try:
        content = json.loads(data.decode(), object_pairs_hook=distinct)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except ValueError as error:
        raise ValueError(printable(str(error), 60)) from None
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    return content


def distinct(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs of a JSON object; raises ValueError for a name that comes twice."""
    content: dict[str, Any] = {}
    for name, value in pairs:
        if name in content:
            raise ValueError(f"{name[:40]!r} comes twice")
        content[name] = value
    return content
