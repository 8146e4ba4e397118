"""From scores to verdicts, with error rates from the scores of clean prompts."""

from memattn_jax.detectors.calibration.calibration import Calibration
from memattn_jax.detectors.calibration.file import load_calibration

__all__ = ["Calibration", "load_calibration"]
