"""How far the seeds of one prompt agree: evidence of memorization for which no training images are needed."""

from dataclasses import dataclass

import numpy as np

from memattn_jax.copies.cliques import largest_clique
from memattn_jax.copies.embedding import Measure
from memattn_jax.errors import InputError


@dataclass(frozen=True)
class Agreement:
    """How alike n images of one prompt are.

    Attributes:
      similarities: [n, n], symmetric.
      threshold: similarity from which two images count as alike.
      measure: what the similarities were measured with.
      mean: over pairs of different images.
      highest: likewise.
      clique: indices of the largest set of images of which each two are alike, ascending; at least one image.
      clusters: indices of images that are alike directly or through others, the largest cluster first; every image is
        in one of them.
    """

    similarities: np.ndarray
    threshold: float
    measure: Measure
    mean: float
    highest: float
    clique: np.ndarray
    clusters: tuple[np.ndarray, ...]

    def __str__(self) -> str:
        """One line that names the measure with its numbers."""
        return (
            f"{len(self.similarities)} images agree at {self.mean:.3f} in the mean, {self.highest:.3f} at most, by "
            f"{self.measure}; {self.alike} at {self.threshold:g} or more"
        )

    @property
    def alike(self) -> str:
        """How many images are alike, each two of them, in words."""
        return f"{len(self.clique)} of {len(self.similarities)} alike" if len(self.clique) > 1 else "no two alike"


def agreement(similarities: np.ndarray, threshold: float, measure: Measure) -> Agreement:
    """Summarizes how alike the images of one prompt are.

    Args:
      similarities: [n, n], symmetric, larger where images are more alike: `Embeddings.similarities()`,
        `normalized_correlation(x, x, shifts)` or `1 - tiled_distance(x, x)`. The diagonal does not matter.
      threshold: similarity from which two images count as alike, to be chosen on clean prompts of the same model.
      measure: what the similarities were measured with.

    Raises:
      InputError: fewer than two images, or similarities that are not finite.
    """
    size = len(similarities)
    if size < 2 or similarities.shape != (size, size):
        raise InputError(f"similarities {list(similarities.shape)}; expected [n, n] of 2 or more images")
    if not np.isfinite(similarities).all():
        raise InputError(f"{measure}: a similarity is not finite")
    pairs = similarities[np.triu_indices(size, 1)]
    close = similarities >= threshold
    return Agreement(
        similarities,
        threshold,
        measure,
        float(pairs.mean(dtype=np.float64)),
        float(pairs.max()),
        largest_clique(close),
        components(close),
    )


def components(close: np.ndarray) -> tuple[np.ndarray, ...]:
    """The connected components of bool [n, n], each as ascending indices, the largest first."""
    unseen, found = np.ones(len(close), bool), []
    while unseen.any():
        members = np.zeros(len(close), bool)
        added = np.arange(len(close)) == unseen.argmax()
        while added.any():
            members |= added
            added = close[added].any(axis=0) & ~members
        unseen &= ~members
        found.append(np.flatnonzero(members))
    return tuple(sorted(found, key=len, reverse=True))
