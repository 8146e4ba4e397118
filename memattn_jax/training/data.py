"""Training data: pairs that were checked, as shuffled batches.

A source is random access, and grain's `MapDataset` makes of it an endless shuffled sequence of batches in which batch n
depends on the seed and n alone. Resuming is indexing. All pairs are read once before a run, so that none fails in it.
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
from memattn_jax.text import printable
from memattn_jax.training.pictures import resize_and_crop
from memattn_jax.training.skipped import Skipped, UnusableError, first_line
from memattn_jax.training.sources import Pairs, open_pairs

__all__ = ["Examples", "Pairs", "batches", "check", "open_pairs", "readable", "resize_and_crop"]
REASON = 140  # characters of an error
THREADS = 8  # each may hold a picture of some hundred megabytes
AT_ONCE = 256  # pairs that threads read between two reports
EXAMPLES = 2**48  # of an endless sequence; its number of batches fits into 64 bits whatever their size


@dataclass(frozen=True)
class Checked:
    """Pairs of which all were read.

    Attributes:
      pairs: the source.
      indices: those that can be used.
      skipped: the others, by reason.
      captions: the captions that occur.
      empty: pairs with an empty caption.
      fingerprint: of pixels, captions and order of what can be used, 16 hexadecimal digits.
    """

    pairs: Pairs
    indices: list[int]
    skipped: Skipped
    captions: frozenset[str]
    empty: int
    fingerprint: str

    @property
    def identity(self) -> str:
        """What a run of these pairs is known by: it cannot be resumed with others, nor in another order."""
        return f"{len(self.indices)} pairs, {self.fingerprint}"


def check(pairs: Pairs, seen: Callable[[int], None] = lambda _: None) -> Checked:
    """Reads every pair once.

    Args:
      pairs: the source.
      seen: told how many are read, from time to time.

    Raises:
      InputError: none can be used.
    """
    good, skipped, captions, digest = [], Skipped(), Counter[str](), hashlib.sha256()

    def read(index: int) -> tuple[bytes, str] | UnusableError:
        try:
            picture, caption = pairs[index]
        except UnusableError as error:
            return error
        except (InputError, OSError) as error:  # of a source of the caller's own
            return UnusableError(first_line(error), f"pair {index}")
        return hashlib.sha256(f"{picture.size}".encode() + picture.tobytes() + caption.encode()).digest(), caption

    with warnings.catch_warnings(), ThreadPoolExecutor(THREADS) as threads:
        warnings.filterwarnings("ignore", module=r"PIL\.")  # of pictures that are skipped, or fine all the same
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
        raise InputError(f"the training data holds no pair that can be used: {why}")
    empty = sum(count for caption, count in captions.items() if not caption.strip())
    return Checked(pairs, good, skipped, frozenset(captions), empty, digest.hexdigest()[:16])


def readable(pairs: Pairs) -> list[int]:
    """Indices of pairs that can be used; for each reason why others cannot, a warning counts them and names some.

    Raises:
      InputError: none is left.
    """
    found = check(pairs)
    for line in found.skipped.lines():
        warnings.warn(f"of {len(pairs)} pairs, {line}", stacklevel=2)
    return found.indices


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

    epochs = EXAMPLES // len(examples)
    dataset = grain.MapDataset.source(examples).seed(seed).shuffle().repeat(epochs).batch(batch_size)
    iterator = iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=4, prefetch_buffer_size=16)))
    iterator.set_state({"next_index": start})
    return iterator
