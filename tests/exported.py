"""Calls of exported detectors, as whoever loads them makes them."""

from types import SimpleNamespace

import jax
import numpy as np
from jax.export import deserialize

from memattn_jax.detectors import export

PROMPTS = ("the cat", "Zebra 7", "an odd and long line on the hill in the land")


def gpu(capability: str) -> SimpleNamespace:
    """What tracing asks of JAX's backend on a machine with an NVIDIA GPU of this compute capability."""
    device = SimpleNamespace(compute_capability=capability)
    return SimpleNamespace(platform="gpu", platform_version="cuda 13000", local_devices=lambda: [device])


def call(artifact: export.Artifact, input_ids: np.ndarray) -> dict[str, np.ndarray]:
    """What the artifact's program gives, as whoever loads it calls it."""
    return jax.device_get(deserialize(bytearray(artifact.program)).call(artifact.arrays, input_ids))


def check(scores: dict[str, np.ndarray], expected: dict[str, np.ndarray], tolerance: float = 1e-5) -> None:
    """The same detectors, and the same scores but for `tolerance` of the largest."""
    assert set(scores) == set(expected)
    for name, score in expected.items():
        assert scores[name].dtype == np.float32
        np.testing.assert_allclose(scores[name], score, rtol=0, atol=tolerance * np.abs(score).max(), err_msg=name)
