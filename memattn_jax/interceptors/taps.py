"""Taps: reductions of the attention probabilities that a model returns."""

import jax.numpy as jnp
from jax import Array

from memattn_jax.interceptors.seam import Context, Sites
from memattn_jax.pytree import pytree, static


@pytree
class TokenMeans:
    """Mean over pixels, float32 [batch, heads, tokens]. A few kilobytes a layer, enough for detection.

    Attributes:
      sites: where; None is every cross-attention layer.
    """

    sites: Sites = static(default=None)

    def __call__(self, probs: Array, context: Context) -> Array:
        """See `Tap`."""
        return probs.mean(axis=2)


@pytree
class AttentionMaps:
    """The whole map, float32 [batch, heads, pixels, tokens]. May use a large amount of memory.

    Attributes:
      sites: where; None is every cross-attention layer.
    """

    sites: Sites = static(default=None)

    def __call__(self, probs: Array, context: Context) -> Array:
        """See `Tap`."""
        return probs


@pytree
class EndTokenMap:
    """Where each row's end token is looked at: mean over heads, float32 [batch, pixels].

    Attributes:
      sites: where; None is every cross-attention layer.
    """

    sites: Sites = static(default=None)

    def __call__(self, probs: Array, context: Context) -> Array:
        """See `Tap`; the context's lengths are needed."""
        end = jnp.asarray(context.lengths)[:, None, None, None] - 1
        return jnp.take_along_axis(probs, end, axis=-1)[..., 0].mean(axis=1)
