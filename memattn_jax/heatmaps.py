"""Where tokens look: attention maps of cross-attention layers as heatmaps over the picture.

A value is the share of a pixel's attention that goes to the chosen tokens, from 0 to 1: the mean over the chosen steps,
heads and layers of the probability of each, added up over the tokens. All tokens together give 1 at every pixel. Layers
of different resolution are brought to the picture's by bilinear interpolation, which keeps these sums.

After Tang et al., "What the DAAM" (ACL 2023, arXiv 2210.04885), equations 5 to 7, who add where this takes means.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float

from memattn_jax.errors import InputError, check_name

ROLES = ("begin", "words", "end", "padding", "summary")  # summary: the end token and the padding
ChosenTokens = int | str | Sequence[int] | np.ndarray
ChosenSteps = int | tuple[int | None, int | None] | None
FINEST = "down_blocks.0."


def finest(sites: Sequence[str]) -> tuple[str, ...]:
    """The sites of the first, finest block, where bright ending reads the end token; all where there are none."""
    return tuple(site for site in sites if site.startswith(FINEST)) or tuple(sites)


def token_mask(tokens: ChosenTokens, lengths: np.ndarray, count: int) -> Bool[np.ndarray, "batch tokens"]:
    """Which tokens of each row are chosen.

    Args:
      tokens: a place, from 0 for the begin token, or several; one of `ROLES`, which each row's length decides; or the
        mask itself, bool [batch, tokens].
      lengths: int [batch], tokens of each prompt, begin and end token counted.
      count: length of the padded sequence.

    Raises:
      InputError: an unknown role, or a place beyond the sequence.
    """
    lengths = np.asarray(lengths)[:, None]
    if isinstance(tokens, str):
        check_name("tokens", tokens, ROLES)
        places = np.arange(count)
        return {
            "begin": (places == 0) & (lengths > 0),
            "words": (places > 0) & (places < lengths - 1),
            "end": places == lengths - 1,
            "padding": places >= lengths,
            "summary": places >= lengths - 1,
        }[tokens]
    given = np.asarray(tokens)
    if given.dtype == bool and given.shape == (len(lengths), count):
        return given
    given = np.atleast_1d(given)
    if given.dtype.kind not in "iu" or given.ndim != 1 or not given.size or given.min() < 0 or given.max() >= count:
        raise InputError(f"tokens: expected places from 0 to {count - 1}, or one of {', '.join(ROLES)}")
    return np.broadcast_to(np.isin(np.arange(count), given), (len(lengths), count))


def grid_shape(pixels: int, height: int, width: int) -> tuple[int, int]:
    """Height and width of a layer's map with so many pixels, where latents of this size are halved from block to block.

    Raises:
      InputError: no number of halvings gives so many.
    """
    shape = height, width
    while shape[0] * shape[1] > pixels:
        shape = (shape[0] + 1) // 2, (shape[1] + 1) // 2  # convolutions of stride 2 round up
    if shape[0] * shape[1] != pixels:
        raise InputError(f"a map of {pixels} pixels is not latents of {height} × {width} halved any number of times")
    return shape


def step_mask(steps: ChosenSteps, count: int) -> Float[np.ndarray, " steps"]:
    """Weights of the chosen steps, float32 [steps], that sum to 1; see `picture_heatmap`."""
    weights = np.zeros(count, np.float32)
    ends = steps if isinstance(steps, tuple) else (None, None) if steps is None else (steps, steps + 1 or None)
    chosen = range(count)[slice(*ends)]
    if not chosen:
        raise InputError(f"steps: {steps} holds none of the {count} steps that the maps were kept of")
    weights[chosen] = 1 / len(chosen)
    return weights


def picture_heatmap(
    maps: Mapping[str, Float[Array | np.ndarray, "steps batch heads _ tokens"]],
    tokens: Bool[np.ndarray, "batch tokens"],
    latents: tuple[int, int],
    size: tuple[int, int],
    *,
    head: int | None = None,
    steps: ChosenSteps = None,
) -> Float[np.ndarray, "batch height width"]:
    """Heatmap of each row over its picture, float32; see the module for its unit.

    Args:
      maps: attention maps by site, [steps, batch, heads, pixels, tokens]; the mean over sites is taken.
      tokens: see `token_mask`.
      latents: height and width of the latents.
      size: of the picture.
      head: of each site; None is the mean over heads.
      steps: a number, from 0 or from the end if negative; (first, stop), as the ends of a slice; None is all.

    Raises:
      InputError: no maps; a head or step that is not there; a map of a shape that does not belong to these latents.
    """
    if not maps:
        raise InputError("no attention maps of this site; sample with taps='heatmaps' or taps='maps'")
    for site, own in maps.items():
        if head is not None and not 0 <= head < own.shape[2]:
            raise InputError(f"head {head}: {site} has heads 0 to {own.shape[2] - 1} in these maps")
    arrays = tuple(jnp.asarray(own) for own in maps.values())
    grids = [grid_shape(own.shape[3], *latents) for own in arrays]
    shares = jax.device_get(_shares(arrays, tokens, step_mask(steps, len(arrays[0])), head))
    layers = [enlarge(own.reshape(-1, *grid), size) for own, grid in zip(shares, grids, strict=True)]
    return np.stack(layers).mean(axis=0, dtype=np.float32)


@partial(jax.jit, static_argnames="head")
def _shares(maps: tuple[Array, ...], tokens: Array, weights: Array, head: int | None) -> tuple[Array, ...]:
    """What each pixel of each layer gives to the tokens, float32 [batch, pixels]: reduced where the maps are."""
    chosen = [own if head is None else own[:, :, head : head + 1] for own in maps]
    mask = jnp.asarray(tokens, jnp.float32)
    return tuple(jnp.einsum("sbhpt,bt,s->bp", own, mask, weights) / own.shape[2] for own in chosen)


def enlarge(images: Float[np.ndarray, "batch h w"], size: tuple[int, int]) -> Float[np.ndarray, "batch height width"]:
    """Bilinear interpolation to a size that is not smaller, as Pillow's and PyTorch's without aligned corners."""
    rows, columns = (_interpolation(*pair) for pair in zip(images.shape[1:], size, strict=True))
    return rows @ images @ columns.T


def _interpolation(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """The matrix that interpolates linearly between the centres of pixels, and repeats the edges."""
    places = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    return np.maximum(0, 1 - np.abs(places[:, None] - np.arange(old))).astype(np.float32)
