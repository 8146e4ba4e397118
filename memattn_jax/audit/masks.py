"""Where in an image the copy is: how alike it and its training image are, place by place, as a map in grey."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from PIL import Image

from memattn_jax.audit.evidence import Nearest
from memattn_jax.copies.search import decoded, fitted
from memattn_jax.ssim import KERNEL, terms
from memattn_jax.storage import Store

EDGE = 64  # pixels of the shorter side at which images are compared: finer ones differ where eyes see none


def likeness_map(image: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Contrast and structure of SSIM (Wang et al., 2004), mean over channels: float32 [height, width] in [0, 1].

    What the window does not fit around is what is nearest to it.

    Args:
      image: uint8 [height, width, 3].
      reference: likewise.
    """
    kernel = min(KERNEL, min(image.shape[:2]) // 2 * 2 - 1)
    x, y = (jnp.asarray(each, jnp.float32)[None] / 255 for each in (image, reference))
    values = np.clip(np.asarray(terms(x, y, kernel)[1])[0].mean(axis=-1), 0, 1)
    return np.pad(values, kernel // 2, mode="edge")


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
        whole = decoded(path)
        scale = min(1.0, EDGE / min(whole.size))
        width, height = (max(1, round(scale * size)) for size in whole.size)
        image = np.asarray(whole.resize((width, height), Image.Resampling.BOX))
        values = likeness_map(image, fitted(best.reference, height, width))
        picture = Image.fromarray(np.round(255 * values).astype(np.uint8)).resize(whole.size, Image.Resampling.BILINEAR)
        sink = io.BytesIO()
        picture.save(sink, format="PNG")
        name = f"{row:06d}.png"
        masks.write(name, sink.getvalue())
        written[row] = f"masks/{name}"
    return written
