"""Edited text embeddings (Kim & No, CVPR 2026 Findings, arXiv 2605.02908), at no cost and without a detector.

    a    the prompt padded with "!", as Stable Diffusion 2 does, in place of the end token
    b    a, and the embedding of the end token set to zero
    c    the first part, 0.7, of the paddings' embeddings set to zero

of the conditional context alone. A zeroed token keeps its place in the softmax, with key and value 0, and so differs
from a masked one. Written from the paper's formulas.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import jax.numpy as jnp
import numpy as np
from jax import Array

from memattn_jax.checkpoints.tokenizer import Tokens
from memattn_jax.diffusion.mitigation import Mitigation, Start
from memattn_jax.errors import InputError, check_name
from memattn_jax.mitigations.checks import check_share
from memattn_jax.pytree import pytree, static

Variant = Literal["a", "b", "c"]


@pytree
class ClipEmbedding(Mitigation):
    """See the module.

    Attributes:
      variant: see the module.
      pad: id of the padding of a and b: 0 is "!" in CLIP's vocabulary.
      share: of the paddings, for c.

    Raises:
      InputError: an unknown variant, or a number that is no share.
    """

    variant: Variant = static(default="b")
    pad: int = 0
    share: float = 0.7

    def __post_init__(self) -> None:
        check_name("variant", self.variant, get_args(Variant))
        if isinstance(self.share, int | float):
            check_share(share=self.share)

    def overrides(self, method: str) -> bool:
        """Whether it changes what a method returns; c leaves the token ids, so it also applies to given embeddings."""
        same = self.variant == "c" and method == "tokens"
        return not same and getattr(type(self), method) is not getattr(Mitigation, method)

    def tokens(self, tokens: Tokens, seeds: Sequence[int], vocabulary: int) -> Tokens:
        """See `Mitigation.tokens`.

        Raises:
          InputError: no such padding token.
        """
        if self.variant == "c":
            return tokens
        if not 0 <= int(self.pad) < vocabulary:
            raise InputError(f"clip_embedding: pad is {int(self.pad)}; this model's tokens are 0 to {vocabulary - 1}")
        padding = np.arange(tokens.input_ids.shape[1]) >= tokens.lengths[:, None]
        return tokens._replace(input_ids=np.where(padding, int(self.pad), tokens.input_ids))

    def embeddings(self, start: Start) -> Array:
        """See `Mitigation.embeddings`."""
        if self.variant == "a":
            return start.context
        position, end = jnp.arange(start.context.shape[1]), start.lengths[:, None] - 1
        zeroed = position == end
        if self.variant == "c":
            first = end + 1
            zeroed = (position >= first) & (position < first + jnp.floor(self.share * (len(position) - first)))
        return jnp.where(zeroed[:, :, None], 0.0, start.context)
