"""The text encoder: trained to tell which caption belongs to which picture, as CLIP is."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array

from demo_model.autoencoder import to_values
from memattn_jax.models.clip_text import CLIPTextModel
from memattn_jax.models.configs import CLIPTextConfig

EMBEDDING = 64


class PictureEncoder(nnx.Module):
    """Pictures of half the size to an embedding; thrown away after training."""

    def __init__(self, *, rngs: nnx.Rngs):
        widths = (3, 32, 64, 96, 128)
        self.convs = nnx.List(nnx.Conv(a, b, (3, 3), strides=2, rngs=rngs) for a, b in pairwise(widths))
        self.out = nnx.Linear(widths[-1], EMBEDDING, rngs=rngs)

    def __call__(self, pictures: Array) -> Array:
        """uint8 [batch, height, width, 3] to [batch, EMBEDDING]."""
        hidden = nnx.avg_pool(to_values(pictures), (2, 2), (2, 2))
        for conv in self.convs:
            hidden = jax.nn.silu(conv(hidden))
        return self.out(hidden.mean(axis=(1, 2)))


class Contrast(nnx.Module):
    """Both encoders and the temperature (Radford et al., arXiv 2103.00020)."""

    def __init__(self, config: CLIPTextConfig, *, rngs: nnx.Rngs):
        self.text = CLIPTextModel(config, rngs=rngs)
        self.project = nnx.Linear(config.hidden_size, EMBEDDING, use_bias=False, rngs=rngs)
        self.picture = PictureEncoder(rngs=rngs)
        self.scale = nnx.Param(jnp.float32(jnp.log(10.0)))


def unit(x: Array) -> Array:
    """Rows divided by their norm."""
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def contrastive_loss(model: Contrast, input_ids: Array, lengths: Array, pictures: Array) -> Array:
    """Symmetric cross-entropy of matching captions to pictures.

    The caption is read off the end token in even rows of the batch and off the last padding token in odd ones, so that
    both come to hold it. Equal captions in a batch are no contrast to each other.
    """
    hidden = model.text(input_ids)  # [batch, tokens, hidden_size]
    rows = jnp.arange(len(input_ids))
    position = jnp.where(rows % 2 == 0, lengths - 1, input_ids.shape[1] - 1)
    text = unit(model.project(hidden[rows, position]))
    logits = jnp.exp(model.scale[...]) * text @ unit(model.picture(pictures)).T  # [captions, pictures]
    equal = (input_ids[:, None] == input_ids).all(-1) & ~jnp.eye(len(input_ids), dtype=bool)
    logits = jnp.where(equal, -jnp.inf, logits)
    losses = (optax.losses.softmax_cross_entropy_with_integer_labels(x, rows) for x in (logits, logits.T))
    return sum(loss.mean() for loss in losses) / 2
