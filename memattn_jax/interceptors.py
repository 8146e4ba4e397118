"""Cross-attention interceptors: the seam between a layer's logits and its output.

    logits = q kᵀ / √d            [batch, heads, pixels, tokens]
      │ edits  (scale the begin token, mask padding or summary tokens)
    probs  = softmax(logits)
      │ tap    (mean over pixels, the whole map, entropy)
    out    = probs v

An `Interceptor` is an immutable pytree that is passed to the model and whose taps the model returns. The numbers in
it (scales, lengths, which rows are conditional) are traced, so that changing them never recompiles; what it does and
at which sites is static. Nothing is registered or patched, and a tap that nobody returns is never computed.

This file knows JAX alone, so any JAX model can call `cross_attention`. A site is the name of a cross-attention layer;
the models here use its diffusers path, `down_blocks.1.attentions.1.transformer_blocks.0.attn2`.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
from jax import Array

from memattn_jax.entropy import token_entropy
from memattn_jax.errors import check_name

Sites = tuple[str, ...] | None  # None: every site


def static(default: Any) -> Any:
    """A dataclass field that is part of the compiled program, not of its data."""
    return field(default=default, metadata={"static": True})


class Edit(Protocol):
    """A change to the attention in two forms, the same up to rounding; see `Interceptor.form`."""

    @property
    def sites(self) -> Sites:
        """Where it applies."""

    def edit_logits(self, logits: Array) -> Array:
        """Logit form: float32 [batch, heads, pixels, tokens] to the same."""

    def edit_keys(self, keys: Array, kept: Array) -> tuple[Array, Array]:
        """Key form: keys [batch, tokens, heads, head_dim] and kept, bool [batch or 1, tokens], to the same.

        It needs no materialised map, so fused attention kernels stay usable, and costs nothing per pixel. Keys keep
        their dtype, and where that is half precision a scaled key is rounded.
        """


class Tap(Protocol):
    """A reduction of the attention probabilities, returned by the model."""

    @property
    def sites(self) -> Sites:
        """Where it applies."""

    def __call__(self, probs: Array) -> Any:
        """float32 [batch, heads, pixels, tokens] to [batch, ...], or a dict of such."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ScaleBeginToken:
    """Multiplies the begin token's logit on conditional rows (Ren et al., `c1` in the reference).

    The logit is scaled, not the probability: a negative logit loses attention by a scale above one.

    Attributes:
      scale: float, one number or [batch].
      conditional: bool [batch], the rows to scale.
      sites: where; None is everywhere.
    """

    scale: Array | float
    conditional: Array
    sites: Sites = static(None)

    def _factors(self, tokens: int) -> Array:
        scale = jnp.where(self.conditional, self.scale, 1.0)  # [batch]
        return jnp.where(jnp.arange(tokens) == 0, scale[:, None], 1.0)  # [batch, tokens]

    def edit_logits(self, logits: Array) -> Array:
        """See `Edit.edit_logits`."""
        return logits * self._factors(logits.shape[-1])[:, None, None, :]

    def edit_keys(self, keys: Array, kept: Array) -> tuple[Array, Array]:
        """See `Edit.edit_keys`."""
        return keys * self._factors(keys.shape[1])[:, :, None, None].astype(keys.dtype), kept


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MaskTokens:
    """Keeps the first tokens of each row and removes the others from the softmax (Ren et al.).

    Attributes:
      keep: int [batch], at least 1, tokens to keep: a prompt's length masks its padding, its length less one its
        summary tokens (end token and padding), the length of the sequence nothing.
      sites: where; None is everywhere.
    """

    keep: Array
    sites: Sites = static(None)

    def _kept(self, tokens: int) -> Array:
        return jnp.arange(tokens) < self.keep[:, None]  # [batch, tokens]

    def edit_logits(self, logits: Array) -> Array:
        """See `Edit.edit_logits`."""
        return jnp.where(self._kept(logits.shape[-1])[:, None, None, :], logits, -jnp.inf)

    def edit_keys(self, keys: Array, kept: Array) -> tuple[Array, Array]:
        """See `Edit.edit_keys`."""
        return keys, kept & self._kept(keys.shape[1])


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TokenMeans:
    """Tap: mean over pixels, float32 [batch, heads, tokens]. A few kilobytes a layer, enough for detection."""

    sites: Sites = static(None)

    def __call__(self, probs: Array) -> Array:
        """See `Tap`."""
        return probs.mean(axis=2)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AttentionMaps:
    """Tap: the whole map, float32 [batch, heads, pixels, tokens]. May use a large amount of memory."""

    sites: Sites = static(None)

    def __call__(self, probs: Array) -> Array:
        """See `Tap`."""
        return probs


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TokenMap:
    """Tap: the map of one token of each row beside the means, {"map": float32 [batch, heads, pixels], "means": …}.

    Attributes:
      token: int [batch], its position.
      sites: where; None is everywhere.
    """

    token: Array
    sites: Sites = static(None)

    def __call__(self, probs: Array) -> dict[str, Array]:
        """See `Tap`; "means" as in `TokenMeans`."""
        chosen = jnp.take_along_axis(probs, self.token[:, None, None, None], axis=-1)
        return {"map": chosen[..., 0], "means": probs.mean(axis=2)}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TokenEntropy:
    """Tap: entropy of the mean over pixels and heads, float32 [batch]. One number a layer."""

    sites: Sites = static(None)

    def __call__(self, probs: Array) -> Array:
        """See `Tap`."""
        return token_entropy(probs.mean(axis=(1, 2)))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Interceptor:
    """What to do at the cross-attention layers of one model call.

    Attributes:
      edits: applied in order.
      tap: what to return of each site it names; None returns nothing.
      form: whether edits act on the logits, which are float32 in every dtype (the default), or on the keys. In float32
        the results are equal to 1e-5. In half precision the key form rounds the keys that it scales: in twenty
        draws of logits of standard deviation 16, a token's attention differed by up to 0.022 in bfloat16 and 0.0028 in
        float16.
    """

    edits: tuple[Edit, ...] = ()
    tap: Tap | None = None
    form: Literal["keys", "logits"] = static("logits")

    def check_sites(self, known: Iterable[str]) -> None:
        """Raises InputError where an edit or the tap names a site that the model lacks."""
        known = tuple(known)
        for part in (*self.edits, self.tap):
            for site in (part.sites or ()) if part is not None else ():
                check_name("cross-attention layer", site, known)


def acts_on(part: Edit | Tap | None, site: str) -> bool:
    """Whether an edit or tap applies at a site."""
    return part is not None and (part.sites is None or site in part.sites)


def split_rows(maps: Array, shared: int) -> Array:
    """Maps of texts [texts, heads, shared · pixels, tokens] to those of their rows [batch, heads, pixels, tokens]."""
    texts, heads, _, tokens = maps.shape
    return maps.reshape(texts, heads, shared, -1, tokens).swapaxes(1, 2).reshape(texts * shared, heads, -1, tokens)


def join_rows(maps: Array, shared: int) -> Array:
    """The inverse of `split_rows`."""
    batch, heads, _, tokens = maps.shape
    return maps.reshape(-1, shared, heads, *maps.shape[2:]).swapaxes(1, 2).reshape(batch // shared, heads, -1, tokens)


def cross_attention(
    query: Array, keys: Array, values: Array, interceptor: Interceptor, site: str
) -> tuple[Array, dict[str, Any]]:
    """Attention of pixels to tokens, through the seam. Softmax and taps are float32.

    Text that several rows share is given once and never repeated: XLA for CPUs in jaxlib 0.10 multiplies by repeated
    keys wrongly (docs/xla-repeated-keys.md), and what repeats them would cost memory. The rows that share it become one
    row with the pixels of all.

    Args:
      query: [batch, pixels, heads, head_dim].
      keys: [texts, tokens, heads, head_dim]; the batch is a multiple, and each text serves that many
        neighbouring rows.
      values: the same shape as keys.
      interceptor: edits and tap; its per-row arrays have this batch's rows.
      site: the name of this layer.

    Returns:
      The output [batch, pixels, heads, head_dim] in query's dtype, and `{site: tap}` or `{}`.
    """
    edits = [edit for edit in interceptor.edits if acts_on(edit, site)]
    tap = interceptor.tap if acts_on(interceptor.tap, site) else None
    shared = len(query) // len(keys)  # rows that one text serves
    mask = None
    if edits and interceptor.form == "keys" and shared == 1:
        kept = jnp.ones((1, keys.shape[1]), bool)
        for edit in edits:
            keys, kept = edit.edit_keys(keys, kept)
        mask = kept[:, None, None, :]  # [batch or 1, 1, 1, tokens]
        edits = []

    # b texts, q pixels of the rows that share one, k tokens, h heads, d head_dim
    # heads before pixels: XLA's batched matrix product on a CPU is several times faster when batch axes come first
    together = query.reshape(len(keys), -1, *query.shape[2:]).swapaxes(1, 2)
    keys, values = keys.swapaxes(1, 2), values.swapaxes(1, 2)
    logits = jnp.einsum("bhqd,bhkd->bhqk", together, keys, preferred_element_type=jnp.float32)
    logits = logits / math.sqrt(query.shape[-1])
    for edit in edits:
        logits = join_rows(edit.edit_logits(split_rows(logits, shared)), shared)
    probs = jax.nn.softmax(logits, axis=-1, where=mask)
    out = jnp.einsum("bhqk,bhkd->bhqd", probs.astype(values.dtype), values).swapaxes(1, 2).reshape(query.shape)
    return out, {} if tap is None else {site: tap(split_rows(probs, shared))}
