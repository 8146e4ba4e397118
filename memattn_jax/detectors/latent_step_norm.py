"""Latent step norm: how far each sampling step moves the latents. An inference, not a published formula.

"Broken Memories" (KDD 2026, arXiv 2605.22050) detects by latent update norms; its formula and code are not public. This
is the form that its abstract suggests: uₜ = ‖x_{t−1} − x_t‖₂, standardised by what clean prompts do at that step, and
averaged over steps. Cost: none beyond the sampling run; no gradients.
"""

from jax import Array


def latent_step_norm(moves: Array, mean: Array | float = 0.0, deviation: Array | float = 1.0) -> Array:
    """Score of each row.

    Args:
      moves: ‖x_{t−1} − x_t‖₂, float32 [steps, batch].
      mean: of clean prompts' moves, float32 [] or [steps, 1]; 0 and a deviation of 1 leave the moves as they are.
      deviation: likewise.

    Returns:
      float32 [batch].
    """
    return ((moves - mean) / deviation).mean(axis=0)
