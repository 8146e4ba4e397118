"""The files of a source: one file, or those of a folder and its subfolders."""

import json
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from memattn_jax.errors import InputError
from memattn_jax.prompts.record import Wanted, valid_text
from memattn_jax.storage import is_local, open_filesystem
from memattn_jax.text import counted, printable

FORMATS = {  # by suffix, case-insensitive; all but Parquet may be followed by .gz
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
MANIFESTS = {  # by name: a key that tells that a command wrote it, and what the command writes beside it
    "manifest.json": ("identity", r"\d+\.(parquet|png)|_verdicts\.parquet|results\.jsonl"),
    "calibration.json": ("own_noise", ""),
    "evaluation.json": ("detectors", r"scores\.csv"),
    "mitigations.json": ("mitigations", r"mitigations\.parquet"),
    "copies.json": ("versions", r"(copies|agreement)\.csv"),
    "figures.json": ("figures", ""),
    "plan.json": ("command", r"(times|audit|adversarial)\.json|items\.jsonl"),
    "search.json": ("chains", r"found\.txt"),
    "about.json": ("dimensions", r"files\.jsonl"),
}
NAMED = 3  # skipped files that a note names


class Source(NamedTuple):
    """One file.

    Attributes:
      filesystem: fsspec's.
      path: in it.
      where: its name in messages, with its suffix.
    """

    filesystem: Any
    path: str
    where: str


def format_of(name: str) -> str | None:
    """The prompt format that a file name stands for; None for other files."""
    stem = name.lower()
    packed = stem.endswith(".gz")
    form = FORMATS.get(PurePosixPath(stem.removesuffix(".gz")).suffix.removeprefix("."))
    return None if packed and form == "parquet" else form


def find_files(source: str, wanted: Wanted) -> list[Source]:
    """The files of a source, in the order of their paths.

    Hidden files and folders, folders that begin with "_", in which Spark and Delta keep their state, and outputs of
    this package are left out; a note names files that are skipped because of their suffix.

    Raises:
      FileNotFoundError: no such file.
      InputError: no file has a supported format.
    """
    filesystem, root = open_filesystem(source)
    if not filesystem.isdir(root):
        if not filesystem.isfile(root):
            raise FileNotFoundError(f"no such prompt file: {source}")
        if source.lower().endswith(PACKED):
            raise InputError(f"{source}: only .gz compression is supported; decompress the file")
        if format_of(source) is None:
            suffix = printable("".join(Path(source).suffixes[-2:]), 20)
            raise InputError(f"{source}: unknown prompt format {suffix!r}; expected {SUFFIXES}, optionally with .gz")
        return [Source(filesystem, root, valid_text(source))]
    root, prefix = root.rstrip("/"), source.rstrip("/")
    found = sorted(path.removeprefix(f"{root}/") for path in walk(filesystem, root, prefix, wanted, set()))
    read = [name for name in found if format_of(name) is not None]
    files = [Source(filesystem, f"{root}/{name}", valid_text(f"{prefix}/{name}")) for name in read]
    if not files:
        raise InputError(f"{source}: no prompt files in this folder; expected {SUFFIXES}, optionally with .gz")
    others = [name for name in found if format_of(name) is None and not name.rsplit("/", 1)[-1].startswith("_")]
    if others:
        names = ", ".join(others[:NAMED]) + ", …" * (len(others) > NAMED)
        wanted.note(f"{source}: skipped because of their suffix: {printable(names, 100)} ({len(others)} in all)")
    return files


def walk(filesystem: Any, folder: str, where: str, wanted: Wanted, entered: set[str]) -> Iterator[str]:
    """Paths of the files in a folder and its subfolders; visits each real folder once."""
    real = str(Path(folder).resolve()) if is_local(where) else folder
    if real in entered:
        return
    entered.add(real)
    names = {entry["name"].rsplit("/", 1)[-1]: entry for entry in filesystem.ls(folder, detail=True)}
    ours = written_by_us(filesystem, folder, names.keys() - {""})
    if ours:
        wanted.note(f"{where}: skipped {counted(len(ours), 'file')} that this package wrote")
    for name, entry in names.items():
        path = f"{folder}/{name}"
        if name.startswith(".") or not name:
            continue
        if entry["type"] == "directory" or (entry["type"] != "file" and filesystem.isdir(path)):
            if not name.startswith("_"):
                yield from walk(filesystem, path, f"{where}/{name}", wanted, entered)
        elif name not in ours:
            yield path


def written_by_us(filesystem: Any, folder: str, names: set[str]) -> set[str]:
    """The files that earlier runs wrote; none in a folder without one of our manifests."""
    ours: set[str] = set()
    for manifest in names & MANIFESTS.keys():
        try:
            content = json.loads(filesystem.cat_file(f"{folder}/{manifest}"))
        except (ValueError, RecursionError):
            continue
        key, beside = MANIFESTS[manifest]
        if isinstance(content, dict) and key in content:
            ours |= {manifest, *(name for name in names if re.fullmatch(beside, name))}
    return ours
