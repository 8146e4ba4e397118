"""Finds the checkpoint that a path means: it may name a file or folder of it, or the folder around it."""

from pathlib import Path

from memattn_jax.checkpoints.checkpoint import PARTS
from memattn_jax.errors import InputError, listed
from memattn_jax.text import printable

FILES = (".safetensors", ".ckpt")  # how the names of whole models in one file end
SHOWN = 100  # characters of the names of what is there instead


def is_model(folder: Path) -> bool:
    """Whether a folder looks like a diffusers folder, complete or not."""
    return (folder / "model_index.json").is_file() or (folder / "unet" / "config.json").is_file()


def snapshot(repository: Path) -> Path:
    """The snapshot of a repository in the hub's cache that its main branch names, or the only one.

    Raises:
      InputError: none, or several and no main branch.
    """
    snapshots = sorted((repository / "snapshots").iterdir())
    main = repository / "refs" / "main"
    named = main.read_text(encoding="utf-8").strip() if main.is_file() else None
    for path in snapshots:
        if path.name == named or len(snapshots) == 1:
            return path
    there = listed((path.name for path in snapshots), SHOWN, None)
    raise InputError(f"{repository}: no snapshot of the main branch; give one of snapshots/: {there or 'none'}")


def find_model(path: Path) -> Path:
    """The diffusers folder or the file of a model that a path means.

    Args:
      path: of either; or of a repository in the hub's cache, or a file named model_index.json. "~" is expanded.

    Raises:
      InputError: a part of a model, or a folder that holds some; the error names the right path.
    """
    path = path.expanduser()
    if path.name == "model_index.json" and path.is_file():
        return path.parent
    if not path.is_dir() or is_model(path):
        return path
    if path.name == "snapshots":
        return find_model(path.parent)
    if (path / "snapshots").is_dir():
        return snapshot(path)
    if path.name in (*PARTS, "tokenizer", "scheduler") and is_model(path.parent):
        raise InputError(f"{path}: this is a part of a model; give the folder of the model, {path.parent}")
    inside = [child for child in sorted(path.iterdir()) if is_model(child) or child.suffix in FILES]
    if inside:
        names = listed((printable(child.name) for child in inside), SHOWN, None)
        raise InputError(f"{path}: not a model itself; give one of those in it: {names}")
    return path
