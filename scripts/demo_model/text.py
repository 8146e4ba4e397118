"""The text encoder: trained to tell which caption belongs to which picture, as CLIP is."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array

from memattn_jax.models.clip_text import CLIPTextModel
from memattn_jax.models.configs import CLIPTextConfig
from memattn_jax.models.layers import conv3x3

EMBEDDING = 64


class PictureEncoder(nnx.Module):
    """Latents to an embedding; thrown away after training."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        widths = (channels, 64, 96, 128)
        self.convs = nnx.List(conv3x3(a, b, rngs=rngs) for a, b in pairwise(widths))
        self.out = nnx.Linear(widths[-1], EMBEDDING, rngs=rngs)

    def __call__(self, latents: Array) -> Array:
        """[batch, h, w, channels] to [batch, EMBEDDING]."""
        for conv in self.convs:
            latents = jax.nn.silu(conv(latents))[:, ::2, ::2]
        return self.out(latents.mean(axis=(1, 2)))


class Contrast(nnx.Module):
    """Both encoders and the temperature (Radford et al., arXiv 2103.00020)."""

    def __init__(self, config: CLIPTextConfig, channels: int, *, rngs: nnx.Rngs):
        self.text = CLIPTextModel(config, rngs=rngs)
        self.project = nnx.Linear(config.hidden_size, EMBEDDING, use_bias=False, rngs=rngs)
        self.picture = PictureEncoder(channels, rngs=rngs)
        self.scale = nnx.Param(jnp.float32(jnp.log(10.0)))


def unit(x: Array) -> Array:
    """Rows divided by their norm."""
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def contrastive_loss(model: Contrast, input_ids: Array, lengths: Array, latents: Array) -> Array:
    """Symmetric cross-entropy of matching captions to pictures.

    The caption is read off the end token in even rows of the batch and off the last padding token in odd ones, so that
    both come to hold it. Equal captions in a batch are no contrast to each other.
    """
    hidden = model.text(input_ids)  # [batch, tokens, hidden_size]
    rows = jnp.arange(len(input_ids))
    position = jnp.where(rows % 2 == 0, lengths - 1, input_ids.shape[1] - 1)
    text = unit(model.project(hidden[rows, position]))
    logits = jnp.exp(model.scale[...]) * text @ unit(model.picture(latents)).T  # [captions, pictures]
    equal = (input_ids[:, None] == input_ids).all(-1) & ~jnp.eye(len(input_ids), dtype=bool)
    logits = jnp.where(equal, -jnp.inf, logits)
    losses = (optax.losses.softmax_cross_entropy_with_integer_labels(x, rows) for x in (logits, logits.T))
    return sum(loss.mean() for loss in losses) / 2
