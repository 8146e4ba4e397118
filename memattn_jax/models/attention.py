"""Attention layers and the transformer of the UNet, after diffusers' `attention.py` and `transformer_2d.py`."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.sharding import Mesh

from memattn_jax.interceptors import Interceptor, cross_attention
from memattn_jax.models.kernels.attention import self_attention
from memattn_jax.models.kernels.blocks import in_chunks
from memattn_jax.models.layers import Conv1x1, Linear, group_norm, layer_norm, traced_once

KeysValues = tuple[Array, Array]  # each [batch, tokens, heads, head_dim]
Text = dict[str, KeysValues]  # {site: keys and values of the text at that site}
Taps = dict[str, dict[str, Any]]  # inside a model {site: {name: tap}}, as a model returns them {name: {site: tap}}


def split_heads(x: Array, heads: int) -> Array:
    """[batch, length, channels] to [batch, length, heads, head_dim]."""
    return x.reshape(*x.shape[:-1], heads, -1)


def merge_heads(x: Array) -> Array:
    """[batch, length, heads, head_dim] to [batch, length, channels]."""
    return x.reshape(*x.shape[:-2], -1)


class SelfAttention(nnx.Module):
    """Attention of pixels to pixels; `attn1`, and with biases the autoencoder's attention.

    Attributes:
      mesh: the devices that rows are split over, set by `spread_attention`; None is one device.
    """

    def __init__(self, channels: int, heads: int, *, use_bias: bool = False, rngs: nnx.Rngs):
        self.heads = heads
        self.mesh: Mesh | None = None
        self.to_q = Linear(channels, channels, use_bias=use_bias, rngs=rngs)
        self.to_k = Linear(channels, channels, use_bias=use_bias, rngs=rngs)
        self.to_v = Linear(channels, channels, use_bias=use_bias, rngs=rngs)
        self.to_out = nnx.List([Linear(channels, channels, rngs=rngs)])

    def __call__(self, hidden: Array) -> Array:
        """[batch, pixels, channels] to the same."""
        query, keys, values = (split_heads(to(hidden), self.heads) for to in (self.to_q, self.to_k, self.to_v))
        with jax.named_scope("self_attention"):
            out = self_attention(query, keys, values, self.mesh)
        return self.to_out[0](merge_heads(out))


class CrossAttention(nnx.Module):
    """Attention of pixels to text tokens, through the interceptor's seam.

    Attributes:
      site: this layer's path in the model, its name for interceptors; the model that owns the layer sets it.
    """

    def __init__(self, channels: int, context_channels: int, heads: int, *, rngs: nnx.Rngs):
        self.heads = heads
        self.site = ""
        self.to_q = Linear(channels, channels, use_bias=False, rngs=rngs)
        self.to_k = Linear(context_channels, channels, use_bias=False, rngs=rngs)
        self.to_v = Linear(context_channels, channels, use_bias=False, rngs=rngs)
        self.to_out = nnx.List([Linear(channels, channels, rngs=rngs)])

    def keys_values(self, context: Array) -> KeysValues:
        """Text embeddings [batch, tokens, context_channels] to keys and values, which no step changes."""
        return split_heads(self.to_k(context), self.heads), split_heads(self.to_v(context), self.heads)

    def __call__(self, hidden: Array, text: Text, interceptor: Interceptor) -> tuple[Array, Taps]:
        """Hidden [batch, pixels, channels] to the same, and the taps that were asked for here."""
        query = split_heads(self.to_q(hidden), self.heads)
        with jax.named_scope("cross_attention"):
            out, taps = cross_attention(query, *text[self.site], interceptor, self.site)
        return self.to_out[0](merge_heads(out)), taps


class GEGLU(nnx.Module):
    """Gated linear unit with an exact GELU gate (Shazeer, arXiv 2002.05202)."""

    def __init__(self, channels: int, inner: int, *, rngs: nnx.Rngs):
        self.proj = Linear(channels, 2 * inner, rngs=rngs)

    def __call__(self, hidden: Array) -> Array:
        """[..., channels] to [..., inner]."""
        hidden, gate = jnp.split(self.proj(hidden), 2, axis=-1)
        return hidden * jax.nn.gelu(gate, approximate=False)


class Dropout(nnx.Module):
    """No-op; keeps list indices aligned with PyTorch's `net.{0,1,2}`."""

    def __call__(self, hidden: Array) -> Array:
        """The identity."""
        return hidden


class FeedForward(nnx.Module):
    """The transformer's perceptron, four times as wide inside."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        inner = 4 * channels
        self.net = nnx.List([GEGLU(channels, inner, rngs=rngs), Dropout(), Linear(inner, channels, rngs=rngs)])

    def __call__(self, hidden: Array) -> Array:
        """[batch, pixels, channels] to the same."""

        def perceptron(hidden: Array) -> Array:
            for layer in self.net:
                hidden = layer(hidden)
            return hidden

        return in_chunks(perceptron, hidden, width=8 * hidden.shape[-1])


class BasicTransformerBlock(nnx.Module):
    """Self-attention (or, with `cross_only`, a second cross-attention), cross-attention, perceptron."""

    def __init__(self, channels: int, context_channels: int, heads: int, *, cross_only: bool, rngs: nnx.Rngs):
        self.norm1 = layer_norm(channels, 1e-5, rngs=rngs)
        self.attn1: SelfAttention | CrossAttention = (
            CrossAttention(channels, context_channels, heads, rngs=rngs)
            if cross_only
            else SelfAttention(channels, heads, rngs=rngs)
        )
        self.norm2 = layer_norm(channels, 1e-5, rngs=rngs)
        self.attn2 = CrossAttention(channels, context_channels, heads, rngs=rngs)
        self.norm3 = layer_norm(channels, 1e-5, rngs=rngs)
        self.ff = FeedForward(channels, rngs=rngs)

    def __call__(self, hidden: Array, text: Text, interceptor: Interceptor) -> tuple[Array, Taps]:
        """Hidden [batch, pixels, channels] to the same, and the taps of its cross-attention."""
        taps: Taps = {}
        if isinstance(self.attn1, CrossAttention):
            out, taps = self.attn1(traced_once(self.norm1, hidden), text, interceptor)
        else:
            out = traced_once(self.attn1, traced_once(self.norm1, hidden))
        hidden = hidden + out
        out, new = self.attn2(traced_once(self.norm2, hidden), text, interceptor)
        hidden = hidden + out
        return hidden + traced_once(self.ff, traced_once(self.norm3, hidden)), taps | new


class Transformer2DModel(nnx.Module):
    """Transformer blocks over the pixels of a feature map, with a residual connection around them."""

    def __init__(
        self,
        channels: int,
        context_channels: int,
        heads: int,
        *,
        layers: int,
        groups: int,
        linear_projection: bool,
        cross_only: bool = False,
        rngs: nnx.Rngs,
    ):
        self.norm = group_norm(channels, groups, 1e-6, rngs=rngs)
        project = Linear if linear_projection else Conv1x1  # on channels-last arrays they compute the same
        self.proj_in = project(channels, channels, rngs=rngs)
        self.transformer_blocks = nnx.List(
            BasicTransformerBlock(channels, context_channels, heads, cross_only=cross_only, rngs=rngs)
            for _ in range(layers)
        )
        self.proj_out = project(channels, channels, rngs=rngs)

    def __call__(self, hidden: Array, text: Text, interceptor: Interceptor) -> tuple[Array, Taps]:
        """Hidden [batch, height, width, channels] to the same, and the taps of its blocks."""
        batch, height, width, channels = hidden.shape
        residual = hidden
        taps: Taps = {}
        hidden = self.proj_in(traced_once(self.norm, hidden)).reshape(batch, height * width, channels)
        for block in self.transformer_blocks:
            hidden, new = block(hidden, text, interceptor)
            taps |= new
        hidden = self.proj_out(hidden.reshape(batch, height, width, channels))
        return hidden + residual, taps


def spread_attention(model: nnx.Module, mesh: Mesh) -> None:
    """Prepares a model for batches whose rows are split over devices, see `kernels.attention.self_attention`."""
    for _, layer in nnx.iter_modules(model):
        if isinstance(layer, SelfAttention):
            layer.mesh = mesh
