"""Sources of training images and captions: a folder in the imagefolder convention, or Parquet with image bytes."""

import os
import posixpath
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from memattn_jax.errors import InputError
from memattn_jax.pictures.decoding import ENDINGS, decode
from memattn_jax.pictures.skipped import UnusableError
from memattn_jax.training.captions import Entry, checked, one_a_caption, read_captions, read_table, value_of

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


class Pairs(Protocol):
    """Images with captions; reading an unusable pair raises `UnusableError`."""

    def __len__(self) -> int:
        """Number of pairs."""

    def __getitem__(self, index: int) -> tuple[Image.Image, str]:
        """Image and caption."""


@dataclass(frozen=True)
class ImageFolder:
    """A folder with images and `metadata.jsonl`, `.csv` or `.parquet`; see `memattn_jax.training.captions`.

    Attributes:
      folder: path of the folder.
      entries: one for each pair, and one for each image without a caption.
    """

    folder: Path
    entries: Sequence[Entry]

    @classmethod
    def open(cls, folder: Path) -> "ImageFolder":
        """Reads the captions.

        Raises:
          FileNotFoundError: no metadata file.
          InputError: several metadata files, or one in another format than its suffix says.
        """
        found = sorted(path for path in folder.iterdir() if path.name.lower() in METADATA)
        if not found:
            below = next((path for path in sorted(folder.glob("*/*")) if path.name.lower() in METADATA), None)
            hint = "" if below is None else f"; {below.parent} has one"
            raise FileNotFoundError(f"{folder}: no captions; expected one of {', '.join(METADATA)}{hint}")
        if len(found) > 1:
            raise InputError(f"{folder}: {' and '.join(path.name for path in found)}; keep one of them")
        entries = read_captions(found[0])
        named = {file_inside(folder, entry.picture) for entry in entries if isinstance(entry.picture, str)}
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder).as_posix()
            if path.suffix.lower() in ENDINGS and name not in named and not path.name.startswith("."):
                entries.append(Entry(name, None, None, UnusableError(f"no caption in {found[0].name}")))
        return cls(folder, entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> tuple[Image.Image, str]:
        return pair(self.entries[index], lambda name: read_inside(self.folder, name))


class ParquetPairs:
    """A Parquet file with `text` and `image`: bytes, a struct of `bytes` or `path`, or a path relative to the file."""

    def __init__(self, path: Path):
        """Reads the two columns.

        Raises:
          InputError: not a Parquet file, or a column is missing.
        """
        self.folder = path.parent
        table = read_table(path, ("image", "text"))
        self.images, texts = table["image"], table["text"]
        self.entries: list[Entry] = []
        for row in range(table.num_rows):
            caption = value_of(texts[row])
            self.entries += one_a_caption(Entry(f"row {row + 1}", row, caption))

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> tuple[Image.Image, str]:
        return pair(self.entries[index], self._image)

    def _image(self, row: int) -> bytes:
        image = value_of(self.images[row])
        if isinstance(image, dict):
            image = image.get("bytes") or image.get("path")
        if image is None:
            raise UnusableError("no image (null)")
        return image if isinstance(image, bytes) else read_inside(self.folder, image)


def pair(entry: Entry, read: Callable[[Any], bytes]) -> tuple[Image.Image, str]:
    """Image and caption of an entry; `read` returns the bytes for its `picture`."""
    try:
        if entry.problem is not None:
            raise entry.problem
        caption = checked(entry.caption)
        return decode(read(entry.picture)), caption
    except UnusableError as error:
        named = isinstance(entry.picture, str)
        raise error.within(f"{entry.place}, {entry.picture}" if named else entry.place) from None


def file_inside(folder: Path, name: str) -> str:
    r"""A file's name relative to the folder, such as "a/b.png": also from "./a/b.png" and Windows' "a\b.png"."""
    return posixpath.normpath(name if os.path.isfile(folder / name) else name.replace("\\", "/"))


def read_inside(folder: Path, name: Any) -> bytes:
    """The content of a file below the folder.

    Raises:
      UnusableError: the file does not exist, lies outside the folder, or cannot be read.
    """
    if not isinstance(name, str):
        raise UnusableError("the name of the image file is not text")
    inside = file_inside(folder, name)
    if inside.startswith(("/", "../")) or inside == "..":
        raise UnusableError("an image outside the folder")
    if not os.path.isfile(folder / inside):
        raise UnusableError("no such image")
    try:
        return (folder / inside).read_bytes()
    except OSError as error:
        raise UnusableError(f"an image that cannot be read ({error.strerror})") from None


def open_pairs(path: Path) -> Pairs:
    """Opens a folder or a Parquet file.

    Raises:
      FileNotFoundError: the path does not exist.
      InputError: see `ImageFolder.open` and `ParquetPairs`.
    """
    if path.is_dir():
        return ImageFolder.open(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such training data: {path} (a folder with metadata.jsonl, or a .parquet file)")
    return ParquetPairs(path)
