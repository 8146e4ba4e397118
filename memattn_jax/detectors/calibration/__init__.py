"""From scores to verdicts: what clean prompts score, and the error rates that follow."""

from memattn_jax.detectors.calibration.calibration import Calibration
from memattn_jax.detectors.calibration.file import load_calibration

__all__ = ["Calibration", "load_calibration"]
