"""A folder of atomically written files, on this machine or in object storage."""

import contextlib
import os
import re
from pathlib import Path
from typing import Any

from memattn_jax.errors import InputError

URL = re.compile(r"[a-z][a-z0-9+.-]+://")


def is_local(url: str) -> bool:
    """Whether a path or URL is on this machine."""
    return not URL.match(url)


def open_filesystem(url: str) -> tuple[Any, str]:
    """The fsspec filesystem that a path or a URL such as gs://bucket/folder names, and the path in it.

    Raises:
      InputError: an unknown scheme, or one whose driver is not installed.
    """
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(url)
    except (ImportError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f'{url}: {reason}; for gs:// and s3://, pip install "memattn-jax[remote]"') from None


class Store:
    """Named files, each written whole or not at all."""

    def __init__(self, folder: str | Path, process: int = 0):
        """Creates the folder if it does not exist.

        Args:
          folder: a path, or a URL that fsspec knows, such as gs://bucket/folder.
          process: index of this process among those that write to the folder.

        Raises:
          InputError: see `open_filesystem`.
          OSError: the folder is not writable.
        """
        self.folder, self.process = str(folder), process
        self.local = is_local(self.folder)
        self.filesystem, self.root = open_filesystem(self.folder)
        self.filesystem.makedirs(self.root, exist_ok=True)
        probe = f".writable.{process}"
        self.write(probe, b"")  # fails now instead of after an hour of work
        self.remove(probe)

    def __str__(self) -> str:
        return self.folder

    def _path(self, name: str) -> str:
        return f"{self.root.rstrip('/')}/{name}"

    def write(self, name: str, content: bytes) -> None:
        """Replaces a file atomically: readers find the old content or the new, even after a power cut.

        Raises:
          OSError: it could not be written; the old content is untouched.
        """
        if not self.local:  # object stores replace objects atomically
            self.filesystem.pipe_file(self._path(name), content)
            return
        path = Path(self._path(name))
        partial = path.with_name(f".{name}.{self.process}.partial")
        try:
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink()
            reason = error.strerror or error
            raise OSError(f"{path}: not written ({reason}); files written before are intact") from None

    def read(self, name: str) -> bytes | None:
        """The content of a file, or None where there is none."""
        try:
            return self.filesystem.cat_file(self._path(name))
        except FileNotFoundError:
            return None

    def open(self, name: str) -> Any:
        """Opens a file for reading; raises FileNotFoundError where there is none."""
        return self.filesystem.open(self._path(name), "rb")

    def names(self) -> list[str]:
        """Names of all files, sorted."""
        self.filesystem.invalidate_cache()
        try:
            paths = self.filesystem.ls(self.root, detail=False)
        except FileNotFoundError:  # object stores know no folders, only names that begin alike
            return []
        return sorted(path.rsplit("/", 1)[-1] for path in paths)

    def remove(self, name: str) -> None:
        """Deletes a file."""
        self.filesystem.rm_file(self._path(name))
