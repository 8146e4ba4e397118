"""Prompts that a mitigation learns from."""

from collections.abc import Sequence
from pathlib import Path


def read_texts(given: Sequence[str] | str | Path) -> tuple[str, ...]:
    """Prompts as they are given; or those of a text file, one a line, without empty ones.

    Raises:
      FileNotFoundError: no such file.
    """
    if isinstance(given, str | Path):
        lines = Path(given).read_text("utf-8").splitlines()
        return tuple(line.strip() for line in lines if line.strip())
    return tuple(given)
