"""Inference-time mitigations: each turns a batch's lengths into edits of the cross-attention."""

from memattn_jax.mitigations.attention_mask import AttentionMask

MITIGATIONS = {"attention_mask": AttentionMask}

__all__ = ["MITIGATIONS", "AttentionMask"]
