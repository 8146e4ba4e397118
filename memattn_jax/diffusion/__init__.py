"""Sampling: a model's networks, the denoising loop, and what a run returns."""
