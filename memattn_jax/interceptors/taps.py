"""Taps: reductions of the attention probabilities that a model returns."""

from collections.abc import Mapping
from typing import Literal, get_args

import jax.numpy as jnp
import numpy as np
from jax import Array

from memattn_jax.errors import InputError, check_name
from memattn_jax.interceptors.seam import Context, Sites, Tap
from memattn_jax.pytree import pytree, static

Heads = Literal["mean", "each"]
OverSteps = tuple[int | None, int | None]  # first and stop, as of a slice


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


@pytree
class MeanMaps:
    """Maps averaged over steps and heads in the compiled program: float32 [batch, 1 or heads, pixels, tokens].

    A sampling run keeps one array a site instead of one a step, with one step in its shape: [1, batch, 1 or heads,
    pixels, tokens], which is 8 MB an image on Stable Diffusion 1 at 512 × 512.

    Attributes:
      sites: where; None is every cross-attention layer.
      heads: "mean" averages over them, "each" keeps them.
      over_steps: the steps to average over, as the ends of a slice: (0, 10) is the first ten, (-1, None) the last.

    Raises:
      InputError: something else for `heads`.
    """

    sites: Sites = static(default=None)
    heads: Heads = static(default="mean")
    over_steps: OverSteps = static(default=(None, None))

    def __post_init__(self) -> None:
        check_name("heads of MeanMaps", self.heads, get_args(Heads))

    def __call__(self, probs: Array, context: Context) -> Array:
        """See `Tap`."""
        return probs if self.heads == "each" else probs.mean(axis=1, keepdims=True)


def step_weights(taps: Mapping[str, Tap], calls: int) -> dict[str, np.ndarray]:
    """Weights of the steps, float32 [calls], that sum to 1, of those taps that have an attribute `over_steps`.

    Raises:
      InputError: a tap is averaged over steps that the run does not have.
    """
    weights = {}
    for name, tap in taps.items():
        if (ends := getattr(tap, "over_steps", None)) is not None:
            chosen = range(calls)[slice(*ends)]
            if not chosen:
                raise InputError(f"tap '{name}': over_steps={ends} holds none of the {calls} steps")
            weights[name] = np.zeros(calls, np.float32)
            weights[name][chosen] = 1 / len(chosen)
    return weights
