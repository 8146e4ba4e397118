"""Keeps what is read of a checkpoint inside its folder."""

import os
from collections.abc import Iterable
from pathlib import Path

from memattn_jax.errors import InputError


def roots(folder: Path) -> list[Path]:
    """Where a folder's files may lie: in it or, in the hub's cache, among the repository's blobs that it links to."""
    real = folder.resolve()
    snapshots = (parent for parent in real.parents if parent.name == "snapshots")
    return [real, *(parent.parent / "blobs" for parent in snapshots)]


def refuse_links_outside(folder: Path, files: Iterable[Path]) -> None:
    """Raises InputError for a file that is a symbolic link, or in a linked folder, to somewhere else."""
    allowed = roots(folder)
    for path in files:
        real = Path(os.path.realpath(path))  # pathlib's raises where a link points at itself
        if not any(real.is_relative_to(root) for root in allowed):
            raise InputError(f"{path}: links to {real}, outside the checkpoint; copy the file into it")
