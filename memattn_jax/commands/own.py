"""Objects of a user's own that an option names, as FILE.py:NAME or MODULE:NAME."""

import importlib.util
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from memattn_jax.errors import InputError
from memattn_jax.text import printable


def check_own(place: str, option: str) -> None:
    """Raises InputError where a value names no object."""
    if not all(place.rpartition(":")[::2]):
        raise InputError(f"{option} {printable(place, 60)}: expected FILE.py:NAME or MODULE:NAME")


def file_of(place: str) -> Path | None:
    """The file with the code that a value names; None where it is no single one."""
    source = place.rpartition(":")[0]
    try:
        spec = None if source.endswith(".py") else importlib.util.find_spec(source)
    except (ImportError, ValueError):
        return None
    path = Path(source if spec is None else spec.origin or "")
    return path if path.is_file() else None


def module_of(path: Path) -> ModuleType:
    """The module in a file, which it runs; known to Python by a name that no other has, as dataclasses need."""
    spec = importlib.util.spec_from_file_location(f"{__name__}.{path.stem}", path)
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    sys.modules[module.__name__] = module
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    return module


def load_own(place: str, option: str, *members: str) -> Any:
    """The object, or an instance of the class, that a value names.

    Args:
      place: FILE.py:NAME or MODULE:NAME; the file or module is run.
      option: that the value is of.
      members: attributes that the object must have.

    Raises:
      InputError: no such file, module or name, or an object that lacks a member.
    """
    source, _, name = place.rpartition(":")
    if source.endswith(".py") and not Path(source).is_file():
        raise InputError(f"{option} {printable(source, 100)}: no such file")
    try:
        module = module_of(Path(source)) if source.endswith(".py") else import_module(source)
    except ModuleNotFoundError as error:
        raise InputError(f"{option} {printable(source, 60)}: {error}") from None
    if not hasattr(module, name):
        raise InputError(f"{option} {printable(place, 100)}: no such name in it")
    found = getattr(module, name)
    found = found() if isinstance(found, type) else found
    for member in members:
        if not hasattr(found, member):
            raise InputError(f"{option} {printable(place, 80)}: no attribute `{member}`")
    return found
