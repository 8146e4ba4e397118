"""Images compared pixel by pixel: thumbnails find the candidates among any number, which are then compared in full."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from memattn_jax.copies.correlation import SHIFTS, normalized_correlation, scaled
from memattn_jax.copies.embedding import Measure
from memattn_jax.copies.tiled import TILES, tiled_distance
from memattn_jax.pictures.decoding import resize_and_crop

EDGE = 16  # pixels of a thumbnail
CANDIDATES = 16  # references that are compared in full


class Thumbnails:
    """An embedding whose inner products are the correlations of thumbnails of the middle squares."""

    measure = Measure("correlation", f"thumbnails of {EDGE} × {EDGE}")

    def prepare(self, picture: Image.Image) -> np.ndarray:
        """The thumbnail of a picture of any size, uint8 [16, 16, 3]."""
        return resize_and_crop(picture, EDGE, EDGE)

    def describe(self, prepared: np.ndarray) -> np.ndarray:
        """Thumbnails to vectors of length 1, or 0 where they are flat; float32 [n, 768]."""
        return scaled(prepared).reshape(len(prepared), -1)

    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        """uint8 [n, h, w, 3] to vectors of their thumbnails."""
        return self.describe(np.stack([self.prepare(Image.fromarray(picture)) for picture in pictures]))


def comparable(picture: Image.Image) -> np.ndarray:
    """The picture, scaled down by a few pixels where it does not divide into tiles; uint8 [h, w, 3]."""
    height, width = (max(TILES, size - size % TILES) for size in (picture.height, picture.width))
    return resize_and_crop(picture, height, width)


def pixel_similarities(
    images: np.ndarray, references: Sequence[Image.Image] | np.ndarray, shifts: int = SHIFTS
) -> dict[Measure, np.ndarray]:
    """Similarities by each measure of pixels.

    Args:
      images: uint8 [n, h, w, 3], edges divisible by `TILES`.
      references: m images of any size, which are cropped and resized as those of training are; or uint8 [m, h, w, 3].
      shifts: see `normalized_correlation`.

    Returns:
      {measure: float32 [n, m]}, larger where images are more alike: the correlation, and 1 less the tiled distance.
    """
    height, width = images.shape[1:3]
    if not isinstance(references, np.ndarray):
        references = np.stack([resize_and_crop(reference, height, width) for reference in references])
    size = f"{height} × {width}"
    return {
        Measure("correlation", f"{size}, shifts up to {shifts}"): normalized_correlation(images, references, shifts),
        Measure("1 - tiled l2", f"{size}, {TILES} × {TILES} tiles"): 1 - tiled_distance(images, references),
    }
