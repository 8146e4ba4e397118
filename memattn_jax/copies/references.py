"""Image files of any size and number, each embedded once, and the nearest of them."""

import hashlib
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from memattn_jax.copies.embedding import Embedding, Embeddings, Measure, Preparing, Similarities, batched, measure_of
from memattn_jax.copies.kept import Entry, KeptVectors, folder_name
from memattn_jax.copies.nearest import BLOCK, ranked
from memattn_jax.errors import InputError
from memattn_jax.pictures.decoding import decode
from memattn_jax.pictures.files import read_image
from memattn_jax.pictures.skipped import Skipped, UnusableError, first_line
from memattn_jax.text import printable

THREADS = 8
AT_ONCE = 64  # files that threads read before the device gets them
WAITING = 2**28  # bytes of images that wait for others of their size
NOTHING = np.empty((0, 0), np.float32)


@dataclass(frozen=True)
class Collection:
    """Embedded image files.

    Attributes:
      files: those that could be embedded.
      rows: int64 [files], of their vectors; equal for equal files.
      vectors: float32 [rows, dimensions], mapped from the disk; rows of other files may be among them.
      measure: the embedding.
      skipped: the other files, by reason.
      added: number of vectors that had to be computed.
    """

    files: list[Path]
    rows: np.ndarray
    vectors: np.ndarray
    measure: Measure
    skipped: Skipped
    added: int

    def embeddings(self) -> Embeddings:
        """The files' vectors in their order, in memory."""
        return Embeddings(np.asarray(self.vectors[self.rows]), self.measure)

    def ranked(self, pictures: Embeddings, count: int = 1, block: int = BLOCK) -> Similarities:
        """The `count` most similar files of each picture; [n, count], the most similar first.

        Equal files are compared once, and the first of them is named. There are as many columns as different files, if
        these are fewer.

        Raises:
          InputError: no files, or pictures that were not measured alike.
        """
        rows, first = np.unique(self.rows, return_index=True)
        found = ranked(pictures, Embeddings(self.vectors, self.measure), min(count, max(1, len(rows))), block, rows)
        return Similarities(found.scores, first[found.index], self.measure)

    def equal_to(self, index: int) -> list[Path]:
        """A file and those with the same bytes."""
        return [self.files[i] for i in np.flatnonzero(self.rows == self.rows[index])]


def embed_files(
    files: Sequence[Path],
    embedding: Embedding | Preparing,
    index: Path | str,
    batch: int = 32,
    measure: Measure | None = None,
    seen: Callable[[int], object] = lambda _: None,
) -> Collection:
    """Embeds image files that are not in the index yet, or have changed since, and adds them to it.

    An embedding that is not `Preparing` is called with pictures of each size there is, for which a compiled function is
    compiled. An embedding is known by its measure, and by its attribute `fingerprint` if it has one.

    Args:
      files: of any format in `pictures.decoding`; see `pictures.files.image_files` for those of a folder.
      embedding: SSCD or your own.
      index: folder for the vectors of any number of embeddings.
      batch: pictures a call.
      measure: names the embedding; None asks for its own, its attribute `measure`.
      seen: called now and then with the number of files that were read since.

    Returns:
      The files; those that cannot be read or embedded are skipped, with a reason.

    Raises:
      InputError: an embedding without a name or with unusable vectors; an index that is damaged or in use.
    """
    measure = measure_of(embedding, measure)
    files = [Path(path).absolute() for path in files]
    with KeptVectors(Path(index) / folder_name(embedding, measure), measure) as kept:
        work = Work(kept, embedding, min(batch, max(1, len(files))))
        with warnings.catch_warnings(), ThreadPoolExecutor(THREADS) as threads:
            warnings.filterwarnings("ignore", module=r"PIL\.")  # about images that are skipped, or usable nevertheless
            for first in range(0, len(files), AT_ONCE):
                some = files[first : first + AT_ONCE]
                for found in threads.map(partial(examine, kept, embedding), some):
                    work.take(found)
                work.note()
                seen(len(some))
            work.finish()
        unusable = work.unusable
        usable = [path for path in files if str(path) not in unusable]
        rows = np.array([kept.entries[str(path)].row for path in usable], np.int64)
        return Collection(usable, rows, kept.vectors(), measure, work.skipped, work.added)


@dataclass(frozen=True)
class Fresh:
    """A file without a vector, and its prepared picture."""

    entry: Entry
    picture: np.ndarray


def examine(kept: KeptVectors, embedding: Embedding | Preparing, path: Path) -> Entry | Fresh | UnusableError:
    """What is known of a file; of one that has not been embedded as it is, its prepared picture."""
    try:
        try:
            status = path.stat()
        except OSError as error:
            raise UnusableError(f"an image that cannot be read ({error.strerror})", str(path)) from None
        known = kept.entries.get(str(path))
        if known is not None and (known.size, known.mtime) == (status.st_size, status.st_mtime_ns):
            return known
        data = read_image(path)
        entry = Entry(str(path), status.st_size, status.st_mtime_ns, hashlib.sha256(data).hexdigest())
        if entry.digest in kept.rows:
            return entry._replace(row=kept.rows[entry.digest])
        try:
            image = decode(data)
        except UnusableError as error:
            return UnusableError(error.reason, str(path))
        prepare: Callable[[Image.Image], np.ndarray] = getattr(embedding, "prepare", np.asarray)
        return Fresh(entry, np.asarray(prepare(image)))
    except UnusableError as error:
        return error
    except MemoryError as error:
        return UnusableError("an image that does not fit into memory", f"{path}: {first_line(error)}")


@dataclass
class Work:
    """Files on their way to vectors: pictures of one size wait for a batch of them.

    Attributes:
      kept: receives the vectors.
      embedding: makes them.
      batch: pictures a call.
      waiting: {shape: entries' digests and pictures}.
      entries: {digest: the files with these bytes that wait}.
      moved: files that are new under their names, and whose bytes have a vector.
      skipped: files that cannot be used.
      unusable: their paths.
      compiled: shapes of which a whole batch has been embedded.
      added: number of vectors made.
      size: bytes that wait.
    """

    kept: KeptVectors
    embedding: Embedding | Preparing
    batch: int
    waiting: dict[tuple[int, ...], list[tuple[str, np.ndarray]]] = field(default_factory=dict)
    entries: dict[str, list[Entry]] = field(default_factory=dict)
    moved: list[Entry] = field(default_factory=list)
    skipped: Skipped = field(default_factory=Skipped)
    unusable: set[str] = field(default_factory=set)
    compiled: set[tuple[int, ...]] = field(default_factory=set)
    added: int = 0
    size: int = 0

    def take(self, found: Entry | Fresh | UnusableError) -> None:
        """Adds a file as it was examined."""
        if isinstance(found, UnusableError):
            self.skip(found)
        elif isinstance(found, Entry):
            if self.kept.entries.get(found.path) != found:
                self.moved.append(found)
        elif (row := self.kept.rows.get(found.entry.digest)) is not None:  # another file had the same bytes
            self.moved.append(found.entry._replace(row=row))
        elif found.entry.digest in self.entries:
            self.entries[found.entry.digest].append(found.entry)
        else:
            self.entries[found.entry.digest] = [found.entry]
            group = self.waiting.setdefault(found.picture.shape, [])
            group.append((found.entry.digest, found.picture))
            self.size += found.picture.nbytes
            if len(group) == self.batch:
                self.embed(found.picture.shape)
            while self.size > WAITING:
                self.embed(max(self.waiting, key=lambda shape: sum(x.nbytes for _, x in self.waiting[shape])))

    def skip(self, error: UnusableError) -> None:
        """Counts a file that cannot be used; its place is its path."""
        self.skipped.add(UnusableError(error.reason, printable(Path(error.place).name)))
        self.unusable.add(error.place)

    def note(self) -> None:
        """Writes down the files whose vectors are known."""
        if self.moved:
            self.kept.add(NOTHING, self.moved)
            self.moved = []

    def finish(self) -> None:
        """Embeds what still waits."""
        for shape in list(self.waiting):
            self.embed(shape)

    def embed(self, shape: tuple[int, ...]) -> None:
        """Embeds all waiting pictures of a shape, and writes their vectors."""
        group = self.waiting.pop(shape)
        pictures = np.stack([picture for _, picture in group])
        self.size -= pictures.nbytes
        if pictures.ndim != 4 or pictures.shape[3] != 3 or pictures.dtype != np.uint8 or 0 in shape:
            raise InputError(f"{self.kept.measure}: prepared {pictures.dtype} {list(shape)}; expected uint8 [h, w, 3]")
        describe: Any = getattr(self.embedding, "describe", self.embedding)
        # a size that comes once needs no program for a whole batch, and one that came before has it already
        size = self.batch if shape in self.compiled else min(self.batch, 1 << (len(group) - 1).bit_length())
        if size == self.batch:
            self.compiled.add(shape)
        vectors = batched(describe, pictures, size, self.kept.measure)
        finite = np.isfinite(vectors).all(axis=1)
        entries, row = [], self.kept.count
        for (digest, _), usable in zip(group, finite, strict=True):
            for entry in self.entries.pop(digest):
                if usable:
                    entries.append(entry._replace(row=row))
                else:
                    self.skip(UnusableError("a vector that is not finite", entry.path))
            row += int(usable)
        self.kept.add(vectors[finite], entries)
        self.added += int(finite.sum())
