"""How alike two pictures are: whether a generated picture is a training picture."""

import numpy as np

REPRODUCED = 0.9  # correlation from which a picture counts as reproduced


def normalized_correlation(pictures: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Correlation of pictures with references, each channel's mean taken off.

    Without taking the channels' means apart, two different pictures of one strong colour would correlate.

    Args:
      pictures: [n, height, width, channels], any numbers.
      references: [m, height, width, channels].

    Returns:
      float64 [n, m], in [-1, 1]; 0 where a picture is flat.
    """

    def normalize(x: np.ndarray) -> np.ndarray:
        x = np.asarray(x, np.float64)
        x = (x - x.mean(axis=(1, 2), keepdims=True)).reshape(len(x), -1)
        norm = np.linalg.norm(x, axis=1, keepdims=True)
        return x / np.where(norm == 0, 1, norm)

    return normalize(pictures) @ normalize(references).T
