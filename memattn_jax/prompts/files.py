"""Which files a source has: one, or those of a folder and its sub-folders."""

import json
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from memattn_jax.errors import InputError
from memattn_jax.prompts.record import Wanted
from memattn_jax.runs.store import is_local, open_filesystem
from memattn_jax.text import printable

FORMATS = {  # by suffix, in any case; all but Parquet with .gz too
    "txt": "txt",
    "csv": "csv",
    "tsv": "tsv",
    "tab": "tsv",
    "jsonl": "json",
    "ndjson": "json",
    "json": "json",
    "parquet": "parquet",
}
PACKED = (".zst", ".bz2", ".xz", ".lz4", ".zip", ".7z", ".snappy")
SUFFIXES = ", ".join(f".{suffix}" for suffix in FORMATS)
OURS = re.compile(r"\d+\.(parquet|png)|(results\.jsonl|(manifest|calibration|evaluation)\.json|scores\.csv)")
MANIFESTS = {"manifest.json": "identity", "evaluation.json": "detectors", "calibration.json": "thresholds"}
NAMED = 3  # files that are named where some are left out


class Source(NamedTuple):
    """One file.

    Attributes:
      filesystem: fsspec's.
      path: in it.
      where: what messages call it; with its suffix.
    """

    filesystem: Any
    path: str
    where: str


def format_of(name: str) -> str | None:
    """What a file's name says that it holds; None for no format of prompts."""
    stem = name.lower()
    packed = stem.endswith(".gz")
    form = FORMATS.get(PurePosixPath(stem.removesuffix(".gz")).suffix.removeprefix("."))
    return None if packed and form == "parquet" else form


def find_files(source: str, wanted: Wanted) -> list[Source]:
    """The files of a source, in the order of their paths.

    Hidden files and folders, folders that begin with "_", as Spark and Delta keep their state in, and what commands of
    this package wrote are left out; what was left out besides, for its suffix, is noted.

    Raises:
      FileNotFoundError: no such file.
      InputError: no file of a format that is read.
    """
    filesystem, root = open_filesystem(source)
    if not filesystem.isdir(root):
        if not filesystem.isfile(root):
            raise FileNotFoundError(f"no such prompt file: {source}")
        if source.lower().endswith(PACKED):
            raise InputError(f"{source}: of compressed files, .gz alone is read; decompress it")
        if format_of(source) is None:
            suffix = printable("".join(Path(source).suffixes[-2:]), 20)
            raise InputError(f"{source}: unknown prompt format {suffix!r}; there are {SUFFIXES}, and .gz after them")
        return [Source(filesystem, root, source)]
    root, prefix = root.rstrip("/"), source.rstrip("/")
    found = sorted(path.removeprefix(f"{root}/") for path in walk(filesystem, root, prefix, wanted, set()))
    files = [Source(filesystem, f"{root}/{name}", f"{prefix}/{name}") for name in found if format_of(name) is not None]
    if not files:
        raise InputError(f"{source}: no prompt file in this folder; {SUFFIXES} are read, and .gz after them")
    others = [name for name in found if format_of(name) is None and not name.rsplit("/", 1)[-1].startswith("_")]
    if others:
        names = ", ".join(others[:NAMED]) + ", …" * (len(others) > NAMED)
        wanted.note(f"{source}: not read, for their suffix: {printable(names, 100)} ({len(others)} in all)")
    return files


def walk(filesystem: Any, folder: str, where: str, wanted: Wanted, entered: set[str]) -> Iterator[str]:
    """Paths of the files in a folder and its sub-folders, each real folder once."""
    real = str(Path(folder).resolve()) if is_local(where) else folder
    if real in entered:
        return
    entered.add(real)
    names = {entry["name"].rsplit("/", 1)[-1]: entry for entry in filesystem.ls(folder, detail=True)}
    ours = written_by_us(filesystem, folder, set(names))
    if ours:
        wanted.note(f"{where}: what this package wrote there is not read ({ours} files)")
    for name, entry in names.items():
        path = f"{folder}/{name}"
        if name.startswith(".") or not name:
            continue
        if entry["type"] == "directory" or (entry["type"] != "file" and filesystem.isdir(path)):
            if not name.startswith("_"):
                yield from walk(filesystem, path, f"{where}/{name}", wanted, entered)
        elif not (ours and OURS.fullmatch(name)):
            yield path


def written_by_us(filesystem: Any, folder: str, names: set[str]) -> int:
    """How many files of a folder are an earlier run's; none where no manifest of ours lies beside them."""
    for manifest in names & MANIFESTS.keys():
        try:
            content = json.loads(filesystem.cat_file(f"{folder}/{manifest}"))
        except (ValueError, RecursionError):
            continue
        if isinstance(content, dict) and MANIFESTS[manifest] in content:
            return sum(OURS.fullmatch(name) is not None for name in names)
    return 0
