"""Arrays of images on both sides of a comparison, and how close they must be."""

import numpy as np
import torch

ROWS, SHAPE = 3, (4, 4, 4)
RNG = np.random.default_rng(0)


def first(tensor) -> torch.Tensor:
    """[..., h, w, channels] to PyTorch's [..., channels, h, w]."""
    return torch.from_numpy(np.moveaxis(np.asarray(tensor), -1, -3).copy())


def last(tensor: torch.Tensor) -> np.ndarray:
    return np.moveaxis(tensor.numpy(), -3, -1)


def draws(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def close(ours, wanted, bound: float = 1e-4) -> None:
    """The largest difference, against what the values spread by."""
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=bound * max(1.0, float(np.std(wanted))))
