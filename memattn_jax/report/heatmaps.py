"""Heatmaps drawn over pictures, as arrays and as PNG files."""

import io

import numpy as np
from matplotlib import colormaps
from PIL import Image

COLOURS = "inferno"  # lighter is more, to colour-blind readers and in print too
FAINT = 0.25  # share of the heat's colour where there is none, so that the picture shows through everywhere
STRONG = 0.85  # and where there is most
GREY = (0.299, 0.587, 0.114)  # luma of ITU-R BT.601


def overlay(image: np.ndarray, heatmap: np.ndarray, highest: float | None = None) -> np.ndarray:
    """A heatmap over its picture in grey, uint8 [height, width, 3]: the more heat, the lighter and the more opaque.

    Args:
      image: uint8 [height, width, 3].
      heatmap: float [height, width], at least 0.
      highest: the heat of the lightest colour; None is the heatmap's own maximum.
    """
    heatmap = np.nan_to_num(np.asarray(heatmap, np.float32))
    highest = float(heatmap.max()) if highest is None else highest
    heat = np.clip(heatmap / highest, 0, 1) if highest > 0 else np.zeros_like(heatmap)
    grey = (image.astype(np.float32) @ np.array(GREY, np.float32))[..., None]
    opacity = (FAINT + (STRONG - FAINT) * heat)[..., None]
    colours = 255 * colormaps[COLOURS](heat)[..., :3]
    return np.round((1 - opacity) * grey + opacity * colours).astype(np.uint8)


def encode_png(image: np.ndarray) -> bytes:
    """An image, uint8 [height, width, 3], as the bytes of a PNG file."""
    sink = io.BytesIO()
    Image.fromarray(image).save(sink, format="PNG")
    return sink.getvalue()
