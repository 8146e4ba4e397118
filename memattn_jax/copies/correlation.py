"""Similarity of images: whether a generated image reproduces a training image."""

import numpy as np

REPRODUCED = 0.9  # correlation from which an image counts as reproduced


def normalized_correlation(images: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Correlation of images with references, after subtracting each channel's mean.

    Without subtracting the means of channels, two different images of one strong colour would correlate.

    Args:
      images: [n, height, width, channels], any numbers.
      references: [m, height, width, channels].

    Returns:
      float64 [n, m], in [-1, 1]; 0 where an image is flat.
    """

    def normalize(x: np.ndarray) -> np.ndarray:
        x = np.asarray(x, np.float64)
        x = (x - x.mean(axis=(1, 2), keepdims=True)).reshape(len(x), -1)
        norm = np.linalg.norm(x, axis=1, keepdims=True)
        return x / np.where(norm == 0, 1, norm)

    return normalize(images) @ normalize(references).T
