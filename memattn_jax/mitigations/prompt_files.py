"""Prompts that a mitigation learns from."""

from collections.abc import Sequence
from pathlib import Path

from memattn_jax.errors import InputError
from memattn_jax.prompts import read_prompts


def read_texts(given: Sequence[str] | str | Path) -> tuple[str, ...]:
    """Prompts as they are given; or those of a prompt file or folder, see `memattn_jax.prompts`, in a column "prompt".

    Raises:
      FileNotFoundError: no such file.
      InputError: a file without prompts or with an unreadable one; or standard input, which cannot be read again.
    """
    if not isinstance(given, str | Path):
        return tuple(given)
    if str(given) in ("", "-"):
        raise InputError(f"expected a prompt file, not '{given}'")
    return tuple(read_prompts(given))
