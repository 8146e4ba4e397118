"""Which reference each image is most like, and how far images of one prompt agree, by every measure."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from memattn_jax.copies.agreement import Agreement, agreement
from memattn_jax.copies.correlation import REPRODUCED, SHIFTS
from memattn_jax.copies.embedding import Embedding, Embeddings, Measure, Preparing
from memattn_jax.copies.pixels import CANDIDATES, Thumbnails, comparable, pixel_similarities
from memattn_jax.copies.references import THREADS, Collection, embed_files
from memattn_jax.pictures.decoding import decode, resize_and_crop
from memattn_jax.pictures.files import read_image
from memattn_jax.pictures.skipped import Skipped

DECODED = 64  # references in memory; images of one prompt share candidates
PIXELS = {
    "correlation": REPRODUCED,
    "1 - tiled l2": 0.9,
}  # thresholds: Carlini et al. connect images at a distance of 0.1


@dataclass(frozen=True)
class Match:
    """An image's most similar reference by one measure.

    Attributes:
      picture: the image.
      similarity: to the reference.
      reference: the file; of equal files the first.
      equal: number of references with the same bytes, itself counted.
      measure: what the similarity was measured with.
      threshold: similarity from which it counts as a copy.
    """

    picture: Path
    similarity: float
    reference: Path
    equal: int
    measure: Measure
    threshold: float


def differing(group: Sequence[Path], rows: Mapping[Path, int]) -> list[Path]:
    """The files that have a row, the first of each: equal files share theirs, and are one seed twice."""
    return list({rows[path]: path for path in reversed(group) if path in rows}.values())[::-1]


@dataclass
class Search:
    """How images are compared.

    Attributes:
      index: folder for vectors, see `embed_files`.
      embeddings: SSCD or your own, each with the similarity from which two images are alike.
      shifts: of the correlation, see `normalized_correlation`.
      batch: images a call of an embedding.
      seen: called now and then with the number of files that were read since, for each embedding and the thumbnails,
        and with the number of images whose pixels were compared.
      skipped: what was skipped, by kind of file ("images" or "references") and embedding.
    """

    index: Path
    embeddings: Sequence[tuple[Embedding | Preparing, float]] = ()
    shifts: int = SHIFTS
    batch: int = 32
    seen: Callable[[int], object] = lambda _: None
    skipped: dict[tuple[str, Measure], Skipped] = field(default_factory=dict)

    def _embed(self, files: Sequence[Path], embedding: Embedding | Preparing, kind: str) -> Collection:
        found = embed_files(files, embedding, self.index, self.batch, seen=self.seen)
        self.skipped[kind, found.measure] = found.skipped
        return found

    def copies(self, pictures: Sequence[Path], references: Sequence[Path]) -> list[Match]:
        """The most similar reference of every image by every measure, embeddings first.

        Those of embeddings are exact. Pixels are compared with the `CANDIDATES` references whose thumbnails correlate
        most with the image's.

        Raises:
          InputError: see `embed_files`; or no reference can be used.
        """
        matches = []
        for embedding, threshold in self.embeddings:
            own, others = self._embed(pictures, embedding, "images"), self._embed(references, embedding, "references")
            found = others.ranked(own.embeddings())
            for path, score, index in zip(own.files, found.scores[:, 0], found.index[:, 0], strict=True):
                matches.append(match(path, float(score), others, int(index), found.measure, threshold))
        thumbnails = Thumbnails()
        own, others = self._embed(pictures, thumbnails, "images"), self._embed(references, thumbnails, "references")
        candidates = others.ranked(own.embeddings(), CANDIDATES).index
        fit = lru_cache(DECODED)(fitted)
        by_pixels: dict[str, list[Match]] = {name: [] for name in PIXELS}
        with ThreadPoolExecutor(THREADS) as threads:
            for path, indices in zip(own.files, candidates, strict=True):
                image = comparable(decoded(path))[None]
                size = image.shape[1:3]
                resized = np.stack(list(threads.map(lambda index, size=size: fit(others.files[index], *size), indices)))
                for measure, (scores,) in pixel_similarities(image, resized, self.shifts).items():
                    best = int(scores.argmax())
                    threshold = PIXELS[measure.model]
                    one = match(path, float(scores[best]), others, int(indices[best]), measure, threshold)
                    by_pixels[measure.model].append(one)
                self.seen(1)
        return matches + [one for group in by_pixels.values() for one in group]

    def agreements(self, groups: Sequence[Sequence[Path]]) -> list[list[tuple[list[Path], Agreement]]]:
        """How far the images of each prompt agree, by every measure, embeddings first.

        Args:
          groups: the images of each prompt; of files with equal bytes the first counts alone.

        Returns:
          Of each prompt, for each measure the images that can be used and their agreement; none of fewer than two.

        Raises:
          InputError: see `embed_files`.
        """
        groups = [[path.absolute() for path in group] for group in groups]
        every = [path for group in groups for path in group]
        found: list[list[tuple[list[Path], Agreement]]] = [[] for _ in groups]
        for embedding, threshold in self.embeddings:
            own = self._embed(every, embedding, "images")
            rows = dict(zip(own.files, own.rows, strict=True))
            for agreed, group in zip(found, groups, strict=True):
                usable = differing(group, rows)
                if len(usable) > 1:
                    vectors = Embeddings(own.vectors[[rows[path] for path in usable]], own.measure)
                    agreed.append((usable, agreement(vectors.similarities(), threshold, own.measure)))
        own = self._embed(every, Thumbnails(), "images")
        rows = dict(zip(own.files, own.rows, strict=True))
        for agreed, group in zip(found, groups, strict=True):
            usable = differing(group, rows)
            if len(usable) > 1:
                first = comparable(decoded(usable[0]))
                images = np.stack([fitted(path, *first.shape[:2]) for path in usable])
                for measure, similarities in pixel_similarities(images, images, self.shifts).items():
                    agreed.append((usable, agreement(similarities, PIXELS[measure.model], measure)))
            self.seen(len(group))
        return found


def match(path: Path, score: float, references: Collection, index: int, measure: Measure, threshold: float) -> Match:
    """A picture and the reference with this index."""
    return Match(path, score, references.files[index], len(references.equal_to(index)), measure, threshold)


def decoded(path: Path) -> Image.Image:
    """The image in a file; raises UnusableError."""
    return decode(read_image(path))


def fitted(path: Path, height: int, width: int) -> np.ndarray:
    """The image in a file, cropped and resized as those of training are, uint8 [height, width, 3]."""
    return resize_and_crop(decoded(path), height, width)
