"""Vectors of image files, kept on disk as they are computed: a process that is killed loses one batch.

In a folder of its own for each embedding (other weights or another preset are another one):

    vectors.f32       float32 [rows, dimensions], little-endian, rows only ever appended
    files.jsonl       for each file [path, size, mtime in ns, SHA-256 of its bytes, row]; the last line counts
    about.json        the embedding, and the dimensions

A row is written before the line that names it, so what was cut off in the middle is found and removed. Files with the
same bytes share a row.
"""

import fcntl
import hashlib
import io
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np

from memattn_jax.copies.embedding import Embedding, Measure, Preparing
from memattn_jax.errors import InputError

FORMAT = 1
VECTORS, FILES, ABOUT, LOCK = "vectors.f32", "files.jsonl", "about.json", "lock"


class Entry(NamedTuple):
    """A file as it was when it was embedded.

    Attributes:
      path: absolute.
      size: in bytes.
      mtime: time of its last change, in nanoseconds.
      digest: SHA-256 of its bytes.
      row: of its vector; -1 before there is one.
    """

    path: str
    size: int
    mtime: int
    digest: str
    row: int = -1


def folder_name(embedding: Embedding | Preparing, measure: Measure) -> str:
    """A folder's name for an embedding, by its attribute `fingerprint`, if it has one, and its measure."""
    identity = json.dumps([FORMAT, *measure, getattr(embedding, "fingerprint", "")])
    readable = re.sub(r"[^\w.-]+", "-", f"{measure.model}-{measure.preset}")[:60].strip("-")
    return f"{readable}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"


class KeptVectors:
    """A folder of vectors; a context, in which no other process may change it.

    Attributes:
      entries: by path.
      rows: by digest.
      dimensions: of a vector; None before there is one.
    """

    def __init__(self, folder: Path, measure: Measure):
        """Names the folder without reading it; `measure` names the embedding in messages."""
        self.folder, self.measure = folder, measure
        self.entries: dict[str, Entry] = {}
        self.rows: dict[str, int] = {}
        self.dimensions: int | None = None
        self.count = 0

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock = (self.folder / LOCK).open("wb")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.lock.close()
            raise InputError(f"{self.folder}: another process is adding to it; wait for it, or name another") from None
        try:
            self._read()
        except BaseException:
            self.lock.close()
            raise
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.lock.close()

    def _read(self) -> None:
        about, log = self.folder / ABOUT, self.folder / FILES
        if not about.exists():
            return
        try:
            self.dimensions = int(json.loads(about.read_bytes())["dimensions"])
            whole = 0
            with log.open("rb") if log.exists() else io.BytesIO() as lines:
                for line in lines:
                    if not line.endswith(b"\n"):
                        break
                    self._know(Entry(*json.loads(line)))
                    whole += len(line)
            stored = (self.folder / VECTORS).stat().st_size if self.count else 0
        except (ValueError, TypeError, KeyError, OSError):
            raise self._damaged() from None
        needed = self.count * self.dimensions * 4
        if stored < needed:
            raise self._damaged()
        for name, size in ((FILES, whole), (VECTORS, needed)):
            if (self.folder / name).exists():
                os.truncate(self.folder / name, size)

    def _damaged(self) -> InputError:
        return InputError(f"{self.folder}: damaged; remove it, and its images are embedded again")

    def _know(self, entry: Entry) -> None:
        self.entries[entry.path] = entry
        self.rows[entry.digest] = entry.row
        self.count = max(self.count, entry.row + 1)

    def add(self, vectors: np.ndarray, entries: Iterable[Entry]) -> None:
        """Writes vectors, float32 [n, dimensions], and then the entries, whose rows are known or among these n.

        Raises:
          InputError: vectors of other dimensions than those before.
        """
        if len(vectors):
            if self.dimensions is None:
                self.dimensions = vectors.shape[1]
                content = {"format": FORMAT, **self.measure._asdict(), "dimensions": self.dimensions}
                append(self.folder / ABOUT, json.dumps(content).encode() + b"\n")
            if vectors.shape[1] != self.dimensions:
                raise InputError(
                    f"{self.measure}: vectors of {vectors.shape[1]} numbers, and {self.folder} has {self.dimensions}; "
                    "a changed embedding needs another name or `fingerprint`"
                )
            append(self.folder / VECTORS, np.ascontiguousarray(vectors, "<f4").tobytes())
        lines = []
        for entry in entries:
            self._know(entry)
            lines.append(json.dumps(entry).encode() + b"\n")
        append(self.folder / FILES, b"".join(lines))

    def vectors(self) -> np.ndarray:
        """All rows, mapped, float32 [rows, dimensions]."""
        if not self.count or self.dimensions is None:
            return np.empty((0, self.dimensions or 0), np.float32)
        return np.memmap(self.folder / VECTORS, "<f4", "r", shape=(self.count, self.dimensions))


def append(path: Path, content: bytes) -> None:
    """Adds to a file, and returns when it is on the disk."""
    with path.open("ab") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
