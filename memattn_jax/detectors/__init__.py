"""Detection of memorized prompts: scores, one a row, larger where memorization is more likely."""

from memattn_jax.detectors.entropy_metrics import entropy_d, entropy_e, first_step_entropy

__all__ = ["entropy_d", "entropy_e", "first_step_entropy"]
