"""Cross-attention interceptors: the seam between a layer's logits and its output.

    logits = q kᵀ / √d + bias     [batch, heads, pixels, tokens]
      │ edits  (change queries, keys, values or bias; or logits; or probabilities)
    probs  = softmax(logits)
      │ taps   (any reduction of the probabilities, by name)
    out    = probs v

An `Interceptor` is an immutable pytree that is passed to the model and whose taps the model returns. The numbers in
it (scales, lengths, which rows are conditional) are traced, so that changing them never recompiles; what it does and
at which sites is static. Nothing is registered or patched, and a tap that nobody returns is never computed.

This file knows JAX alone, so any JAX model can call `cross_attention`. A site is the name of a cross-attention layer;
the models here use its diffusers path, `down_blocks.1.attentions.1.transformer_blocks.0.attn2`. Ready-made edits are
in `edits.py`, taps in `taps.py`.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import field, replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from memattn_jax.errors import InputError, check_name
from memattn_jax.pytree import as_pytree, pytree, static

Sites = tuple[str, ...] | None  # None: every site
Stage = Literal["inputs", "logits", "probs"]
STAGES: tuple[Stage, ...] = ("inputs", "logits", "probs")


@pytree
class Context:
    """Where and when an edit or a tap is called.

    Attributes:
      site: name of the layer.
      step: int32 [], number of the model's call in a sampling run, from 0.
      timestep: float32 [] or [batch], in the noise schedule's training steps; None where the model passes none.
      conditional: bool [batch], False for the unconditional rows of guidance; None where all are conditional.
      lengths: int32 [batch], tokens of each row's conditional prompt, begin and end token counted; None where unknown.
    """

    site: str = static(default="")
    step: Array | int = 0
    timestep: Array | None = None
    conditional: Array | np.ndarray | None = None
    lengths: Array | np.ndarray | None = None


class Attention(NamedTuple):
    """One layer's attention, as an edit receives and returns it.

    Attributes:
      query: [batch, pixels, heads, head_dim].
      keys: [batch, tokens, heads, head_dim].
      values: the same shape as keys.
      bias: float32, broadcastable to [batch, heads, pixels, tokens], added to the logits; None is zero. A mask is
        -infinity, a factor of the attention its logarithm.
      logits: float32 [batch, heads, pixels, tokens], bias added; None at the stage "inputs".
      probs: likewise, after the softmax; None before the stage "probs".
    """

    query: Array
    keys: Array
    values: Array
    bias: Array | None = None
    logits: Array | None = None
    probs: Array | None = None

    def add_bias(self, bias: Array) -> "Attention":
        """With more added to the logits; `bias` as the attribute."""
        return self._replace(bias=bias if self.bias is None else self.bias + bias)


# `edit(attention, context) -> attention`. Two attributes are optional: `sites`, where it applies, and `stage`: "inputs"
# (the default) changes query, keys, values and bias, which keeps fused kernels usable; "logits" changes `logits`, and
# "probs" `probs`, and nothing else. Edits of one stage are applied in order.
Edit = Callable[[Attention, Context], Attention]
# `tap(probs, context) -> tree of [batch, ...]`, from float32 [batch, heads, pixels, tokens]. Two attributes are
# optional: `sites`, and `over_steps`, the ends of a slice of a sampling run's steps. With it the run returns the mean
# over these steps, made in the compiled program, with a leading axis of 1, instead of every step.
Tap = Callable[[Array, Context], Any]


@pytree
class Interceptor:
    """The edits and taps for the cross-attention layers of one model call.

    Edits and taps are any callables. Numbers in those that are pytrees are traced (`memattn_jax.pytree.pytree` makes
    such a class); all else, as a plain function, is static.

    Attributes:
      edits: see `Edit`.
      taps: what to return of each site, by name; see `Tap`.
      step: see `Context`; likewise the following.
      timestep: a model that knows it sets it.
      conditional: the rows of this call.
      lengths: likewise.
    """

    edits: tuple[Edit, ...] = ()
    taps: Mapping[str, Tap] = field(default_factory=dict)
    step: Array | int = 0
    timestep: Array | None = None
    conditional: Array | np.ndarray | None = None
    lengths: Array | np.ndarray | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "edits", tuple(map(as_pytree, self.edits)))
        object.__setattr__(self, "taps", {name: as_pytree(tap) for name, tap in self.taps.items()})

    def at(self, timestep: Array) -> "Interceptor":
        """For a call of the model at this timestep."""
        return replace(self, timestep=timestep)

    def context(self, site: str) -> Context:
        """The context of edits and taps at a site."""
        return Context(site, self.step, self.timestep, self.conditional, self.lengths)

    def edits_at(self, site: str, stage: Stage) -> list[Edit]:
        """The edits of one stage that apply at a site."""
        return [edit for edit in self.edits if acts_at(edit, site) and stage_of(edit) == stage]

    def check_sites(self, known: Iterable[str]) -> None:
        """Raises InputError where an edit or tap names a site that the model lacks, or an edit an unknown stage."""
        known = tuple(known)
        for part in (*self.edits, *self.taps.values()):
            for site in getattr(part, "sites", None) or ():
                check_name("cross-attention layer", site, known)
        for edit in self.edits:
            check_name("stage of an edit", stage_of(edit), STAGES)


def acts_at(part: Edit | Tap, site: str) -> bool:
    """Whether an edit or tap applies at a site."""
    sites = getattr(part, "sites", None)
    return sites is None or site in sites


def for_rows(values: Array | np.ndarray | float, rows: int) -> Array:
    """Numbers of each prompt, or one for all, as numbers of each row: guidance has two rows a prompt, side by side.

    Raises:
      InputError: the rows cannot be those of so many prompts.
    """
    values = jnp.asarray(values)
    if values.ndim and (not len(values) or rows % len(values)):
        raise InputError(f"{len(values)} numbers for {rows} rows; expected one, or one for each prompt or row")
    return jnp.repeat(values, rows // len(values), axis=0) if values.ndim else jnp.broadcast_to(values, rows)


def stage_of(edit: Edit) -> Stage:
    """The stage that an edit acts at; see `Edit`."""
    return getattr(edit, "stage", "inputs")


def attention_logits(
    query: Float[Array, "batch queries heads dim"], keys: Float[Array, "batch keys heads dim"]
) -> Float[Array, "batch heads queries keys"]:
    """q kᵀ / √d in float32, [batch, heads, queries, keys], of [batch, queries or keys, heads, head_dim]."""
    # heads before pixels: XLA's batched matrix product on a CPU is several times faster when batch axes come first
    query, keys = query.swapaxes(1, 2), keys.swapaxes(1, 2)
    logits = jnp.einsum("bhqd,bhkd->bhqk", query, keys, preferred_element_type=jnp.float32)
    return logits / math.sqrt(query.shape[-1])


def weighted_values(
    probs: Float[Array, "batch heads queries keys"], values: Float[Array, "batch keys heads dim"]
) -> Float[Array, "batch queries heads dim"]:
    """Probabilities [batch, heads, queries, keys] and values [batch, keys, heads, head_dim] to the attention's output.

    That is [batch, queries, heads, head_dim], in the dtype of values.
    """
    return jnp.einsum("bhqk,bhkd->bhqd", probs.astype(values.dtype), values.swapaxes(1, 2)).swapaxes(1, 2)


def split_rows(maps: Array, shared: int) -> Array:
    """Maps of texts [texts, heads, shared · pixels, tokens] to those of their rows [batch, heads, pixels, tokens]."""
    texts, heads, _, tokens = maps.shape
    return maps.reshape(texts, heads, shared, -1, tokens).swapaxes(1, 2).reshape(texts * shared, heads, -1, tokens)


def edited(interceptor: Interceptor, attention: Attention, context: Context, stage: Stage) -> Attention:
    """The attention after the edits of stage "logits" or "probs".

    Raises:
      InputError: an edit has changed something else, which is used already.
    """
    for edit in interceptor.edits_at(context.site, stage):
        before, attention = attention, edit(attention, context)
        parts = zip(Attention._fields, before, attention, strict=True)
        if others := [name for name, old, new in parts if name != stage and new is not old]:
            raise InputError(f"an edit of stage {stage!r} may change {stage} alone, but it changed {others[0]}")
    return attention


def cross_attention(
    query: Float[Array, "batch pixels heads dim"],
    keys: Float[Array, "texts tokens heads dim"],
    values: Float[Array, "texts tokens heads dim"],
    interceptor: Interceptor,
    site: str,
) -> tuple[Float[Array, "batch pixels heads dim"], dict[str, dict[str, Any]]]:
    """Attention of pixels to tokens, through the seam. Softmax and taps are float32.

    Text that several rows share is given once. Without edits it is never repeated: XLA for CPUs in jaxlib 0.10
    multiplies by repeated keys wrongly (docs/xla-repeated-keys.md), and what repeats them costs memory. The rows that
    share it become one row with the pixels of all.

    Args:
      query: [batch, pixels, heads, head_dim].
      keys: [texts, tokens, heads, head_dim]; the batch is a multiple, and each text serves that many
        neighbouring rows.
      values: the same shape as keys.
      interceptor: edits and taps; its per-row arrays have this batch's rows.
      site: the name of this layer.

    Returns:
      The output [batch, pixels, heads, head_dim] in query's dtype, and {site: {name: tap}}, without taps {}.
    """
    context = interceptor.context(site)
    attention = Attention(query, keys, values)
    if len(query) > len(keys) and any(acts_at(edit, site) for edit in interceptor.edits):
        keys, values = (jnp.repeat(x, len(query) // len(keys), axis=0) for x in (keys, values))
        # times 1, as XLA cannot see: with keys that it sees repeated it would multiply wrongly
        one = jnp.where(jnp.isnan(query[:, :1, :1, :1]), jnp.nan, 1.0).astype(keys.dtype)
        attention = Attention(query, keys * one, values)
    for edit in interceptor.edits_at(site, "inputs"):
        attention = edit(attention, context)

    texts = len(attention.keys)
    logits = attention_logits(attention.query.reshape(texts, -1, *query.shape[2:]), attention.keys)
    if attention.bias is not None:
        logits = logits + attention.bias
    attention = edited(interceptor, attention._replace(logits=logits), context, "logits")
    attention = attention._replace(probs=jax.nn.softmax(attention.logits, axis=-1))  # type: ignore[arg-type]
    probs: Any = edited(interceptor, attention, context, "probs").probs

    out = weighted_values(probs, attention.values).reshape(query.shape).astype(query.dtype)
    rows_probs = split_rows(probs, len(query) // texts)
    taps = {name: tap(rows_probs, context) for name, tap in interceptor.taps.items() if acts_at(tap, site)}
    return out, {site: taps} if taps else {}


def by_name(taps: Mapping[str, Mapping[str, Any]], names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Taps of a model's layers, {site: {name: tap}}, as a model returns them: {name: {site: tap}}."""
    return {name: {site: own[name] for site, own in taps.items() if name in own} for name in names}
