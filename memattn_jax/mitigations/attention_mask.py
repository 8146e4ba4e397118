"""Inference-time mitigation of Ren et al. (ECCV 2024, arXiv 2403.11052): mask tokens, strengthen the begin token."""

from typing import Literal, get_args

import numpy as np
from jax import Array

from memattn_jax.diffusion.mitigation import Mitigation, Step
from memattn_jax.errors import InputError, check_name
from memattn_jax.interceptors import Edit, MaskTokens, ScaleBeginToken, Sites
from memattn_jax.pytree import pytree, static

Mask = Literal["padding", "summary"]


@pytree
class AttentionMask(Mitigation):
    """Removes padding or all summary tokens from the softmax and multiplies the begin token's logit.

        probs = softmax([C·s₀, s₁, …, s_{keep−1}, −∞, …])

    The defaults are the reference's command line: `--cross_attn_mask --miti_mem --c1 1.25`.

    Attributes:
      begin_scale: C, on conditional rows only, one number or [batch]; 1 changes nothing.
      mask: "padding" keeps the end token, as the reference does by default; "summary" masks it too, as the paper
        describes and the reference does with `--mask_length_minis1`; None masks nothing.
      mask_unconditional: whether the unconditional rows of guidance are masked at the same positions (by the
        *conditional* prompt's length), as the reference does; False leaves them alone.
      sites: where; None is every cross-attention layer.

    Raises:
      InputError: an unknown mask; in a run, scales for another number of prompts.
    """

    begin_scale: float | Array | np.ndarray = 1.25
    mask: Mask | None = static(default="padding")
    mask_unconditional: bool = static(default=True)
    sites: Sites = static(default=None)

    def __post_init__(self) -> None:
        if isinstance(self.begin_scale, int):  # another dtype would compile again
            object.__setattr__(self, "begin_scale", float(self.begin_scale))
        if self.mask is not None:
            check_name("mask", self.mask, get_args(Mask))

    def edits(self, step: Step) -> tuple[Edit, ...]:
        """See `Mitigation.edits`."""
        given = np.shape(self.begin_scale)
        if given and given != (len(step.latents),):
            raise InputError(f"begin_scale has shape {list(given)}, where there are {len(step.latents)} prompts")
        scale = ScaleBeginToken(self.begin_scale, sites=self.sites)
        if self.mask is None:
            return (scale,)
        keep = step.lengths - 1 if self.mask == "summary" else step.lengths
        return MaskTokens(keep, unconditional=self.mask_unconditional, sites=self.sites), scale
