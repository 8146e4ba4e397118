"""Training data: checked pairs, in shuffled batches.

A source has random access, and grain's `MapDataset` turns it into an endless shuffled sequence of batches, in which
batch n depends on the seed and n alone. Resuming is indexing. All pairs are read once before a run, so that none fails
during it.
"""

import hashlib
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from memattn_jax.errors import InputError
from memattn_jax.pictures.decoding import resize_and_crop
from memattn_jax.pictures.skipped import Skipped, UnusableError, first_line
from memattn_jax.text import counted, printable
from memattn_jax.training.sources import Pairs, open_pairs

__all__ = ["Examples", "Pairs", "batches", "check", "open_pairs", "readable", "resize_and_crop"]
REASON = 140  # characters of an error
THREADS = 8  # each may hold an image of a few hundred megabytes
AT_ONCE = 256  # pairs that threads read between two reports
TOGETHER = 16  # batches that a process draws before it hands them over
EXAMPLES = 2**48  # in an endless sequence; its number of batches fits into 64 bits for any batch size


@dataclass(frozen=True)
class Checked:
    """A source whose pairs have all been read once.

    Attributes:
      pairs: the source.
      indices: the usable pairs.
      skipped: the others, by reason.
      captions: the distinct captions.
      empty: number of pairs with an empty caption.
      fingerprint: hash of the pixels, captions and order of usable pairs, 16 hexadecimal digits.
    """

    pairs: Pairs
    indices: list[int]
    skipped: Skipped
    captions: frozenset[str]
    empty: int
    fingerprint: str

    @property
    def identity(self) -> str:
        """Identifies the data of a run, which cannot resume with other pairs or in another order."""
        return f"{counted(len(self.indices), 'pair')}, {self.fingerprint}"


def check(pairs: Pairs, seen: Callable[[int], None] = lambda _: None) -> Checked:
    """Reads every pair once.

    Args:
      pairs: the source.
      seen: called now and then with the number of pairs read.

    Raises:
      InputError: no pair is usable.
    """
    good, skipped, captions, digest = [], Skipped(), Counter[str](), hashlib.sha256()

    def read(index: int) -> tuple[bytes, str] | UnusableError:
        try:
            picture, caption = pairs[index]
        except UnusableError as error:
            return error
        except (InputError, OSError) as error:  # from a source of the caller's
            return UnusableError(first_line(error), f"pair {index}")
        return hashlib.sha256(f"{picture.size}".encode() + picture.tobytes() + caption.encode()).digest(), caption

    with warnings.catch_warnings(), ThreadPoolExecutor(THREADS) as threads:
        warnings.filterwarnings("ignore", module=r"PIL\.")  # about images that are skipped, or usable nevertheless
        for first in range(0, len(pairs), AT_ONCE):
            some = range(first, min(first + AT_ONCE, len(pairs)))
            for index, found in zip(some, threads.map(read, some), strict=True):
                if isinstance(found, UnusableError):
                    skipped.add(found)
                    continue
                good.append(index)
                captions[found[1]] += 1
                digest.update(found[0])
            seen(some.stop)
    if not good:
        why = printable((skipped.lines() or ["it is empty"])[0], REASON)
        raise InputError(f"the training data has no usable pair: {why}")
    empty = sum(count for caption, count in captions.items() if not caption.strip())
    return Checked(pairs, good, skipped, frozenset(captions), empty, digest.hexdigest()[:16])


def readable(pairs: Pairs) -> list[int]:
    """Indices of usable pairs; one warning for each reason counts the others and names some.

    Raises:
      InputError: no pair is usable.
    """
    found = check(pairs)
    for line in found.skipped.lines():
        warnings.warn(f"of {counted(len(pairs), 'pair')}, {line}", stacklevel=2)
    return found.indices


@dataclass(frozen=True)
class Examples:
    """Pairs as arrays, which grain reads.

    Attributes:
      pairs: the source.
      indices: the pairs to use.
      tokenize: maps a caption to token ids, int32 [tokens].
      height: in pixels.
      width: in pixels.
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


def batches(examples: Any, batch_size: int, seed: int, start: int, workers: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """Endless batches of shuffled epochs, from batch `start` on; batch n is a function of (seed, n).

    Reading runs ahead in threads, or in `workers` processes, for picklable examples that Python draws: threads make
    that no faster. Processes hand over `TOGETHER` batches at once, since each time the threads that receive them wait
    for the interpreter, which a training loop keeps busy.
    """
    import grain

    epochs = EXAMPLES // len(examples)
    dataset = grain.MapDataset.source(examples).seed(seed).shuffle().repeat(epochs).batch(batch_size)
    options = grain.ReadOptions(num_threads=4, prefetch_buffer_size=16)
    if workers:
        from absl import flags

        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain asks for a flag, which nobody but absl's own programs parses
        alone = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
        some = dataset.batch(TOGETHER)[start // TOGETHER :].to_iter_dataset(alone)
        processes = grain.multiprocessing.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=1)
        return one_by_one(iter(some.mp_prefetch(processes)), start % TOGETHER)
    iterator = iter(dataset.to_iter_dataset(options))
    iterator.set_state({"next_index": start})
    return iterator


def one_by_one(iterator: Any, skipped: int) -> Iterator[dict[str, np.ndarray]]:
    """The batches that grain's iterator yields together, but the first; its processes end when this one is closed."""
    try:
        for some in iterator:
            for i in range(skipped, TOGETHER):
                yield {name: array[i] for name, array in some.items()}
            skipped = 0
    finally:
        iterator.close()
