"""Pictures as vectors whose inner products say how alike they are: SSCD's, or those of an embedding of your own."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image

from memattn_jax.errors import InputError

Embedding = Callable[[np.ndarray], Any]  # uint8 [n, h, w, 3] to [n, d], each row from its picture alone


class Preparing(Protocol):
    """An embedding that brings images of any size to one, for `references.embed_files`; SSCD is one.

    Where it has an attribute `fingerprint`, another one means other vectors, and those that were kept are not used.
    """

    def prepare(self, picture: Image.Image) -> np.ndarray:
        """An RGB image to uint8 [h, w, 3]; called on the host, in threads."""

    def describe(self, prepared: np.ndarray) -> Any:
        """Prepared images of one size, uint8 [n, h, w, 3], to vectors, [n, d], each row from its image alone."""


class Measure(NamedTuple):
    """What a number was measured with; goes wherever the number goes.

    Attributes:
      model: such as "sscd_disc_mixup".
      preset: how pictures were prepared; see `copies.sscd.presets`.
    """

    model: str
    preset: str

    def __str__(self) -> str:
        return f"{self.model} (preset {self.preset})"


@dataclass(frozen=True)
class Embeddings:
    """Embedded pictures: float32 [n, d], and what with."""

    vectors: np.ndarray
    measure: Measure

    def similarities(self) -> np.ndarray:
        """Inner products of every two pictures, float32 [n, n]."""
        return self.vectors @ self.vectors.T


@dataclass(frozen=True)
class Similarities:
    """How similar each picture is to its nearest reference, and by what measure.

    Attributes:
      scores: float32 [n].
      index: int32 [n], of the nearest reference.
      measure: the embedding and the preset.
    """

    scores: np.ndarray
    index: np.ndarray
    measure: Measure


def embed(embedding: Embedding, pictures: np.ndarray, batch: int = 32, measure: Measure | None = None) -> Embeddings:
    """Embeds pictures, a batch at a time.

    Args:
      embedding: SSCD, or any function of pictures. Each call has the same number of them, so that it compiles once.
      pictures: uint8 [n, h, w, 3].
      batch: pictures a call.
      measure: names the embedding; None asks for its own, its attribute `measure`.

    Raises:
      InputError: no pictures, or of another shape or dtype; an embedding without a name; or vectors of the wrong shape
        or that are not finite.
    """
    measure = measure_of(embedding, measure)
    pictures = np.asarray(pictures)
    if pictures.ndim != 4 or pictures.shape[3] != 3 or pictures.dtype != np.uint8 or 0 in pictures.shape:
        raise InputError(f"pictures: {pictures.dtype} {list(pictures.shape)}; expected uint8 [n, h, w, 3]")
    vectors = batched(embedding, pictures, min(batch, len(pictures)), measure)
    if not np.isfinite(vectors).all():
        row = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
        raise InputError(f"{measure}: the vector of picture {row} is not finite")
    return Embeddings(vectors, measure)


def measure_of(embedding: Embedding | Preparing, measure: Measure | None) -> Measure:
    """The name that is given, or the embedding's own; raises InputError where there is none."""
    own = getattr(embedding, "measure", None) if measure is None else measure
    if own is None:
        raise InputError("measure: expected Measure(model, preset), as this embedding has no attribute `measure`")
    return own


def batched(embedding: Embedding, pictures: np.ndarray, batch: int, measure: Measure) -> np.ndarray:
    """The vectors of pictures of one size, float32 [n, d], with `batch` pictures in every call.

    Raises:
      InputError: vectors of the wrong shape.
    """
    parts = []
    for start in range(0, len(pictures), batch):
        some = pictures[start : start + batch]
        missing = batch - len(some)
        vectors = np.asarray(embedding(np.pad(some, ((0, missing), (0, 0), (0, 0), (0, 0)))), np.float32)
        if vectors.ndim != 2 or len(vectors) != batch:
            raise InputError(f"{measure}: gave {list(vectors.shape)} for {batch} pictures; expected [{batch}, d]")
        parts.append(vectors[: len(some)])
    return np.concatenate(parts)
