"""Where in an image the copy is: how alike it and its training image are, place by place, as a map in grey."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.ndimage import uniform_filter

from memattn_jax.audit.evidence import Nearest
from memattn_jax.copies.search import decoded, fitted
from memattn_jax.storage import Store

WINDOWS = 8  # a side
FAR = 0.2  # distance at which nothing is alike; twice that from which Carlini et al. call two images copies


def likeness_map(image: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """1 less the distance around each pixel, as a share of `FAR`: float32 [height, width] in [0, 1].

    The distance is the root mean square over channels and over a window, an eighth of the image a side, of values that
    span 1: that of Carlini et al. (arXiv 2301.13188, section 4.2), in a window around each pixel instead of in tiles.

    Args:
      image: uint8 [height, width, 3].
      reference: likewise.
    """
    squares = (((image.astype(np.float32) - reference) / 255) ** 2).mean(axis=-1)
    window = max(1, min(image.shape[:2]) // WINDOWS)
    distance = np.sqrt(np.maximum(uniform_filter(squares, window, mode="nearest"), 0))
    return np.clip(1 - distance / FAR, 0, 1)


def write_masks(
    shots: Mapping[int, Sequence[Mapping[str, Any]]], images: Path, nearest: Mapping[Path, Nearest], masks: Store
) -> dict[int, str]:
    """Writes the map of each prompt's best copy; returns {row: file in the audit's folder}, of extracted prompts.

    Args:
      shots: rows of the sampled images by the row of their prompt in the log.
      images: their folder.
      nearest: training images that they are most like.
      masks: receives the files.
    """
    written = {}
    for row, own in shots.items():
        found = [(path, nearest[path]) for shot in own if shot["file"] and (path := images / shot["file"]) in nearest]
        copies = [one for one in found if one[1].copy]
        if not copies:
            continue
        path, best = max(copies, key=lambda one: next(iter(one[1].similarity.values())))
        image = np.asarray(decoded(path))
        values = likeness_map(image, fitted(best.reference, *image.shape[:2]))
        sink = io.BytesIO()
        Image.fromarray(np.round(255 * values).astype(np.uint8)).save(sink, format="PNG")
        name = f"{row:06d}.png"
        masks.write(name, sink.getvalue())
        written[row] = f"masks/{name}"
    return written
