"""Inference-time mitigation of Ren et al. (ECCV 2024, arXiv 2403.11052): mask tokens, strengthen the begin token."""

from dataclasses import dataclass
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from memattn_jax.errors import check_name
from memattn_jax.interceptors import Edit, MaskTokens, ScaleBeginToken, Sites, static

Mask = Literal["padding", "summary"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AttentionMask:
    """Removes padding or all summary tokens from the softmax and multiplies the begin token's logit.

        probs = softmax([C·s₀, s₁, …, s_{keep−1}, −∞, …])

    The defaults are the reference's command line: `--cross_attn_mask --miti_mem --c1 1.25`.

    Attributes:
      begin_scale: C, on conditional rows only, one number or [batch]; 1 changes nothing.
      mask: "padding" keeps the end token, as the reference does by default; "summary" masks it too, as the paper
        describes and the reference does with `--mask_length_minis1`; None masks nothing.
      mask_unconditional: whether the unconditional half of guidance is masked at the same positions (by the
        *conditional* prompt's length), as the reference does; False leaves that half alone.
      sites: where; None is every cross-attention layer.

    Raises:
      InputError: an unknown mask.
    """

    begin_scale: float | Array | np.ndarray = 1.25
    mask: Mask | None = static("padding")
    mask_unconditional: bool = static(True)
    sites: Sites = static(None)

    def __post_init__(self) -> None:
        if self.mask is not None:
            check_name("mask", self.mask, get_args(Mask))

    def edits(
        self,
        lengths: Array | np.ndarray,
        conditional: Array | np.ndarray,
        tokens: int,
        active: Array | bool = True,
    ) -> tuple[Edit, ...]:
        """The edits for one batch.

        Args:
          lengths: int [rows], of each row's conditional prompt, begin and end token counted.
          conditional: bool [rows].
          tokens: length of the padded sequence.
          active: bool, one or [rows]; the attention of other rows stays as it is.
        """
        lengths, conditional = jnp.asarray(lengths), jnp.asarray(conditional)
        begin_scale = jnp.asarray(self.begin_scale, jnp.float32)
        if begin_scale.ndim:  # one a prompt, for both halves of guidance
            begin_scale = jnp.tile(begin_scale, len(conditional) // len(begin_scale))
        scale = ScaleBeginToken(begin_scale, conditional & active, sites=self.sites)
        if self.mask is None:
            return (scale,)
        keep = lengths - 1 if self.mask == "summary" else lengths
        if not self.mask_unconditional:
            keep = jnp.where(conditional, keep, tokens)
        return MaskTokens(jnp.where(active, keep, tokens), sites=self.sites), scale
