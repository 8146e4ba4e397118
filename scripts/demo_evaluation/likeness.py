"""How alike pictures are, by each measure; a number is never without its measure, preset and reference."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from memattn_jax.copies.correlation import REPRODUCED, normalized_correlation
from memattn_jax.copies.embedding import embed
from memattn_jax.copies.sscd import load_sscd

BATCH = 16


class Likeness(NamedTuple):
    """A measure.

    Attributes:
      name: with the preset.
      thresholds: from which a picture counts as a copy, the strictest first.
      compare: maps uint8 [n, height, width, 3] and [m, height, width, 3] to similarities [n, m].
    """

    name: str
    thresholds: tuple[float, ...]
    compare: Callable[[np.ndarray, np.ndarray], np.ndarray]

    def own(self, images: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Similarity of samples [prompts, seeds, ...] with their prompt's picture [prompts, ...], [prompts, seeds]."""
        pairs = zip(images, targets, strict=True)
        return np.stack([self.compare(rows, target[None])[:, 0] for rows, target in pairs])

    def nearest(self, images: np.ndarray, references: np.ndarray) -> np.ndarray:
        """Largest similarity of samples [prompts, seeds, ...] with any reference, [prompts, seeds]."""
        flat = images.reshape(-1, *images.shape[2:])
        return self.compare(flat, references).max(axis=1).reshape(images.shape[:2])


class Vectors:
    """SSCD's vectors, each picture embedded once and kept in a file."""

    def __init__(self, weights: Path, preset: str, path: Path):
        self.embedding = load_sscd(weights, preset)
        self.path = path
        self.known: dict[str, np.ndarray] = {}
        if path.exists():
            with np.load(path) as stored:
                self.known = dict(zip(stored["keys"].tolist(), stored["vectors"], strict=True))

    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        """uint8 [n, height, width, 3] to float32 [n, d]."""
        keys = [hashlib.sha256(picture.tobytes()).hexdigest() for picture in pictures]
        new = {key: picture for key, picture in zip(keys, pictures, strict=True) if key not in self.known}
        if new:
            padding = [pictures[0]] * (-len(new) % BATCH)  # so that one program serves every call
            found = embed(self.embedding, np.stack([*new.values(), *padding]), BATCH).vectors
            self.known.update(zip(new, found, strict=False))
            np.savez(self.path, keys=list(self.known), vectors=np.stack(list(self.known.values())))
        return np.stack([self.known[key] for key in keys])

    def compare(self, images: np.ndarray, references: np.ndarray) -> np.ndarray:
        """Cosines [n, m]."""
        return self(images) @ self(references).T


CORRELATION = Likeness("correlation", (REPRODUCED,), normalized_correlation)


def sscd(weights: Path, preset: str, work: Path) -> Likeness:
    """SSCD; 0.7 is what papers count as a copy and 0.5 as alike."""
    vectors = Vectors(weights, preset, work / f"sscd-{preset}.npz")
    return Likeness(str(vectors.embedding.measure), (0.7, 0.5), vectors.compare)
