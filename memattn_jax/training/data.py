"""Training pictures and captions: a folder in the imagefolder convention, or Parquet with image bytes.

A source is random access, and grain's `MapDataset` makes of it an endless shuffled sequence of batches in which batch n
depends on the seed and n alone. Resuming is indexing.
"""

import io
import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image, UnidentifiedImageError

from memattn_jax.errors import InputError


class Pairs(Protocol):
    """Pictures with captions."""

    def __len__(self) -> int:
        """How many."""

    def __getitem__(self, index: int) -> tuple[Image.Image, str]:
        """Picture and caption."""


@dataclass(frozen=True)
class ImageFolder:
    """A folder with pictures and `metadata.jsonl`, a line each: {"file_name": "a.png", "text": "a caption"}."""

    folder: Path
    rows: tuple[tuple[str, str], ...]

    @classmethod
    def open(cls, folder: Path) -> "ImageFolder":
        """Reads the captions.

        Raises:
          FileNotFoundError: no metadata.jsonl.
          InputError: a line that is no JSON object with file_name and text, or a picture that has no line.
        """
        path = folder / "metadata.jsonl"
        if not path.is_file():
            raise FileNotFoundError(f"{folder}: no metadata.jsonl, which holds the captions")
        rows = []
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                row = json.loads(line)
                rows.append((row["file_name"], row["text"]))
            except (ValueError, KeyError, TypeError):
                raise InputError(f'{path}: line {number} is not {{"file_name": …, "text": …}}') from None
        named = {name for name, _ in rows}
        for picture in sorted(folder.rglob("*")):
            name = picture.relative_to(folder).as_posix()
            if picture.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp") and name not in named:
                raise InputError(f"{path}: no caption for {name}")
        return cls(folder, tuple(rows))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Image.Image, str]:
        name, text = self.rows[index]
        return Image.open(self.folder / name), text


class ParquetPairs:
    """A Parquet file with columns `image` (bytes, or a struct with `bytes`) and `text`."""

    def __init__(self, path: Path):
        """Opens the file, memory-mapped.

        Raises:
          InputError: a column is missing.
        """
        import pyarrow.parquet as pq

        self.table = pq.read_table(path, memory_map=True)
        for column in ("image", "text"):
            if column not in self.table.column_names:
                raise InputError(f"{path}: no column {column!r}; it has {', '.join(self.table.column_names)}")

    def __len__(self) -> int:
        return self.table.num_rows

    def __getitem__(self, index: int) -> tuple[Image.Image, str]:
        image, text = self.table["image"][index].as_py(), self.table["text"][index].as_py()
        return Image.open(io.BytesIO(image["bytes"] if isinstance(image, dict) else image)), text


def open_pairs(path: Path) -> Pairs:
    """A folder or a Parquet file.

    Raises:
      FileNotFoundError: neither is there.
      InputError: as `ImageFolder.open` and `ParquetPairs`.
    """
    if path.is_dir():
        return ImageFolder.open(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such training data: {path} (a folder with metadata.jsonl, or a .parquet file)")
    return ParquetPairs(path)


def resize_and_crop(picture: Image.Image, height: int, width: int) -> np.ndarray:
    """Scales to cover height × width and crops the middle: uint8 [height, width, 3]."""
    scale = max(height / picture.height, width / picture.width)
    size = (max(width, round(picture.width * scale)), max(height, round(picture.height * scale)))
    if picture.size != size:
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return np.asarray(picture.convert("RGB").crop((left, top, left + width, top + height)))


def readable(pairs: Pairs) -> list[int]:
    """Indices of pairs whose picture decodes; the others are skipped, counted and listed in one warning.

    Raises:
      InputError: none is left.
    """
    good, bad = [], []
    for index in range(len(pairs)):
        try:
            with pairs[index][0] as picture:
                picture.load()
            good.append(index)
        except (UnidentifiedImageError, OSError) as error:
            bad.append(f"{index} ({error})")
    if bad:
        listed = ", ".join(bad)
        warnings.warn(f"{len(bad)} of {len(pairs)} pictures cannot be read and are skipped: {listed}", stacklevel=2)
    if not good:
        raise InputError("the training data holds no picture that can be read")
    return good


@dataclass(frozen=True)
class Examples:
    """What grain reads: pairs as arrays.

    Attributes:
      pairs: the source.
      indices: which of them.
      tokenize: caption to token ids, int32 [tokens].
      height: pixels.
      width: pixels.
    """

    pairs: Pairs
    indices: list[int]
    tokenize: Callable[[str], np.ndarray]
    height: int
    width: int

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        picture, text = self.pairs[self.indices[index]]
        with picture:
            return {"pictures": resize_and_crop(picture, self.height, self.width), "input_ids": self.tokenize(text)}


def batches(examples: Any, batch_size: int, seed: int, start: int) -> Iterator[dict[str, np.ndarray]]:
    """Endless batches of shuffled epochs, from batch `start` on; batch n is a function of (seed, n).

    Reading runs ahead in threads.
    """
    import grain

    dataset = grain.MapDataset.source(examples).seed(seed).shuffle().repeat().batch(batch_size)
    iterator = iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=4, prefetch_buffer_size=16)))
    iterator.set_state({"next_index": start})
    return iterator
