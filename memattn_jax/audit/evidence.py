"""What sampled images show: the training picture that each is most like, and how far the seeds of a prompt agree."""

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from memattn_jax.audit.folder import file_digest
from memattn_jax.copies.search import Match, Search, decoded
from memattn_jax.storage import Store

DIGITS = 6  # of similarities; what lies beyond differs between batches
THUMBNAIL = 256  # pixels of a reference's longer side
LEAST_ALIKE = 2  # images


class Nearest(NamedTuple):
    """The training picture that an image is most like.

    Attributes:
      similarity: by measure, each to the picture that is nearest by that measure.
      reference: nearest by the deciding measure, the first.
      copy: whether that measure says that the image is a copy.
    """

    similarity: dict[str, float]
    reference: Path
    copy: bool


def nearest(search: Search, images: Sequence[Path], references: Sequence[Path]) -> tuple[dict[Path, Nearest], list]:
    """The nearest training picture of each image, and the measures as entries of audit.json."""
    if not images:
        return {}, []
    by_image: dict[Path, list[Match]] = {}
    matches = search.copies(images, references)
    for match in matches:
        by_image.setdefault(match.picture, []).append(match)
    found = {}
    for path, own in by_image.items():
        similarity = {match.measure.model: round(match.similarity, DIGITS) for match in own}
        found[path] = Nearest(similarity, own[0].reference, own[0].similarity >= own[0].threshold)
    return found, measures_of(((one.measure, one.threshold) for one in matches), "training pictures")


def agreements(search: Search, groups: Sequence[Sequence[Path]]) -> tuple[list[dict[str, Any] | None], list]:
    """How far the images of each prompt agree by the deciding measure, the first, and the measures as entries.

    None for a prompt with fewer than two images.
    """
    found = search.agreements(groups)
    entries: list[dict[str, Any] | None] = []
    for own in found:
        entries.append(None)
        if own:
            one = own[0][1]
            entries[-1] = {
                "measure": one.measure.model,
                "mean": round(one.mean, DIGITS),
                "highest": round(one.highest, DIGITS),
                "alike": len(one.clique),
                "threshold": one.threshold,
            }
    return entries, measures_of(((one.measure, one.threshold) for own in found for _, one in own), "seeds")


def measures_of(used: Iterable[tuple[Any, float]], against: str) -> list[dict[str, Any]]:
    """Entries of the measures that were used, the deciding one first."""
    return [
        {"name": measure.model, "preset": measure.preset, "threshold": threshold, "against": against, "decides": not i}
        for i, (measure, threshold) in enumerate(dict.fromkeys(used))
    ]


def is_memorized(agreement: Mapping[str, Any] | None, images: int, extracted: bool | None) -> bool | None:
    """Whether a prompt counts as memorized: a training picture was extracted, or most of its seeds are alike.

    Args:
      agreement: of its images, None where there are fewer than two.
      images: number of them that are finite.
      extracted: whether one of them is a copy of a training picture, None where there are none to compare with.

    Returns:
      None where it cannot be said.
    """
    if extracted:
        return True
    if agreement is None:
        return None
    return agreement["alike"] >= max(LEAST_ALIKE, math.ceil(images / 2))


def write_thumbnail(path: Path, references: Store) -> str:
    """Writes a training picture, scaled down, unless it is there already; returns its file's name."""
    name = f"{file_digest(path)[:32]}.png"
    if references.read(name) is None:
        picture = decoded(path)
        picture.thumbnail((THUMBNAIL, THUMBNAIL))
        sink = io.BytesIO()
        picture.save(sink, format="PNG")
        references.write(name, sink.getvalue())
    return name
