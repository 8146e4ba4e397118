"""Attention entropy and the detection metrics E and D of Ren et al. (ECCV 2024, arXiv 2403.11052).

Everything here works on mean attention per token: the cross-attention probabilities averaged over pixels. Entropy is
taken *of* the mean, in natural logarithms, so it lies in [0, ln tokens]; memorized prompts score high.
"""

from collections.abc import Mapping
from typing import Literal, get_args

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import xlogy
from jaxtyping import Bool, Float, Int

from memattn_jax.errors import InputError, check_name

Variant = Literal["code", "paper"]
TokenAttention = Mapping[str, Array]  # {site: float32 [steps, batch, heads, tokens]}, sites in forward order

METRIC_E_SITE = 3  # "the fourth layer" of the paper; 32 × 32 pixels in Stable Diffusion at 512 × 512


def token_entropy(
    attention: Float[Array, "*rows tokens"], where: Bool[Array, "*#rows tokens"] | None = None
) -> Float[Array, "*rows"]:
    """`-Σ a ln a` over the last axis, in float32; 0 at a = 0, where a masked token stands.

    Args:
      attention: [..., tokens], mean attention per token.
      where: bool, broadcastable to it; the tokens to sum over (no renormalisation, as in the reference).

    Returns:
      float32 [...].
    """
    attention = attention.astype(jnp.float32)
    return -jnp.sum(xlogy(attention, attention), axis=-1, where=where)


def is_summary(lengths: Int[Array | np.ndarray, " batch"], tokens: int) -> Bool[Array, "batch tokens"]:
    """Which positions hold summary tokens, the end token and the padding: bool [batch, tokens].

    Args:
      lengths: int [batch], tokens of each prompt with its begin and end token.
      tokens: length of the padded sequence.
    """
    return jnp.arange(tokens) >= lengths[:, None] - 1


def entropy_over_heads(attention: Float[Array, "*rows heads tokens"]) -> Float[Array, "*rows"]:
    """Entropy of the mean over heads: [..., heads, tokens] to float32 [...]."""
    return token_entropy(attention.mean(axis=-2))


def mean_over_sites(attention: Mapping[str, Float[Array, "*rows heads tokens"]]) -> Float[Array, "*rows tokens"]:
    """Mean over heads, then over sites: {site: [..., heads, tokens]} to float32 [..., tokens].

    Sites weigh the same whatever their number of heads (Stable Diffusion 2 has 5, 10 and 20), as in the reference's
    `read_results.py`, which repeats heads up to a common number.
    """
    return jnp.stack([a.astype(jnp.float32).mean(axis=-2) for a in attention.values()]).mean(axis=0)


def metric_e(attention: TokenAttention, site: str | None = None) -> Float[Array, " batch"]:
    """Metric E: entropy at one site, at the first sampling step, of the mean over heads.

    Args:
      attention: token means per step.
      site: the site's name; by default the fourth of `attention`, the paper's.

    Returns:
      float32 [batch].

    Raises:
      InputError: no such site.

    Source: Ren et al. section 4, `detect.py --mode E` of the reference.
    """
    sites = list(attention)
    if site is None and len(sites) > METRIC_E_SITE:
        site = sites[METRIC_E_SITE]
    if site not in sites:
        wanted = f"site number {METRIC_E_SITE}" if site is None else repr(site)
        raise InputError(f"metric E: {wanted} is not among the {len(sites)} tapped sites: {', '.join(sites)}")
    return entropy_over_heads(attention[site][0])


def metric_d(attention: TokenAttention, lengths: Array | np.ndarray, variant: Variant = "code") -> Array:
    """Metric D: entropy over the last fifth of the steps, plus how far the summary tokens' share of it moved.

    With Eₜ the entropy at step t of the mean over sites and heads, Sₜ its part on summary tokens and ⟨·⟩ the mean
    over the last ⌊T/5⌋ (at least one) of T steps:

      code:   ⟨Eₜ⟩ + ⟨Sₜ⟩ − S₀       `detect.py --mode D` of the reference
      paper:  ⟨Eₜ⟩ + ⟨|Sₜ − S₀|⟩     Ren et al., as given by Jeon et al. (arXiv 2412.04140, appendix D.1)

    Args:
      attention: token means per step, all sites.
      lengths: int [batch], tokens of each prompt with its begin and end token.
      variant: which of the two forms.

    Returns:
      float32 [batch].

    Raises:
      InputError: no sites, or an unknown variant.
    """
    if not attention:
        raise InputError("metric D: no tapped sites; sample with taps")
    return entropy_and_movement(mean_over_sites(attention), lengths, variant)


def entropy_and_movement(mean: Array, lengths: Array | np.ndarray, variant: Variant = "code") -> Array:
    """Metric D from the mean over sites and heads, float32 [steps, batch, tokens]; see `metric_d`."""
    check_name("variant of metric D", variant, get_args(Variant))
    last = slice(-max(1, len(mean) // 5), None)
    entropy = token_entropy(mean)  # [steps, batch]
    summary = token_entropy(mean, where=is_summary(lengths, mean.shape[-1]))
    moved = summary[last] - summary[0]
    if variant == "paper":
        moved = jnp.abs(moved)
    return entropy[last].mean(axis=0) + moved.mean(axis=0)
