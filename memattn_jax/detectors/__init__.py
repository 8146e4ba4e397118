"""Detection of memorized prompts: scores, one a row, larger where memorization is more likely.

entropy_metrics.py  noise_norm.py  sharpness.py …    one file a method: arrays in, scores out
first_step.py  trajectory.py                         what they look at, each forward made once
registry.py  scorer.py                               detectors by name; prompts in, scores out
attribution.py                                       which tokens are to blame
"""

from memattn_jax.detectors.detection import Detection
from memattn_jax.detectors.entropy_metrics import entropy_d, entropy_e, first_step_entropy
from memattn_jax.detectors.registry import DETECTORS, Detector
from memattn_jax.detectors.scorer import Scorer

__all__ = ["DETECTORS", "Detection", "Detector", "Scorer", "entropy_d", "entropy_e", "first_step_entropy"]
