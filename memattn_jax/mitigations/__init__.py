"""Mitigations: what changes a sampling run so that a memorized image is not returned, and the guard that decides when.

`Mitigation` is the base class of yours; it lists the places that a mitigation may change.
"""

from memattn_jax.diffusion.mitigation import Mitigation, Prediction, Start, Step
from memattn_jax.mitigations.attention_mask import AttentionMask
from memattn_jax.mitigations.compose import compose
from memattn_jax.registries import MITIGATIONS

__all__ = ["MITIGATIONS", "AttentionMask", "Mitigation", "Prediction", "Start", "Step", "compose"]
