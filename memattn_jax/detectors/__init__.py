"""Detection of memorized prompts: scores, one per row, larger where memorization is more likely.

protocol.py                                          what a detector is
entropy_metrics.py  noise_norm.py  sharpness.py …    one file a method: arrays in, scores out
first_step.py                                        what they look at, each forward made once
programs.py  scorer.py                               prompts in, scores out
attribution.py                                       token attribution
calibration/                                         from scores to verdicts
"""

from memattn_jax.detectors.detection import Detection
from memattn_jax.detectors.entropy_metrics import entropy_d, entropy_e
from memattn_jax.detectors.first_step import FirstStep
from memattn_jax.detectors.protocol import (
    Detector,
    FirstStepDetector,
    ImageDetector,
    Images,
    PromptDetector,
    TrajectoryDetector,
)
from memattn_jax.detectors.scorer import Scorer
from memattn_jax.registries import DETECTORS

__all__ = [
    "DETECTORS",
    "Detection",
    "Detector",
    "FirstStep",
    "FirstStepDetector",
    "ImageDetector",
    "Images",
    "PromptDetector",
    "Scorer",
    "TrajectoryDetector",
    "entropy_d",
    "entropy_e",
]
