"""CLIP's text encoder, after transformers' `modeling_clip.py` (Radford et al., arXiv 2103.00020)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from memattn_jax.models.attention import merge_heads, split_heads
from memattn_jax.models.configs import CLIPTextConfig
from memattn_jax.models.kernels.attention import plain_attention
from memattn_jax.models.layers import EMBEDDING_INIT, Linear, layer_norm, traced_once


def quick_gelu(x: Array) -> Array:
    """OpenAI's approximation of GELU."""
    return x * jax.nn.sigmoid(1.702 * x)


def gelu(x: Array) -> Array:
    """Exact GELU."""
    return jax.nn.gelu(x, approximate=False)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"quick_gelu": quick_gelu, "gelu": gelu}


def embedding(count: int, size: int, *, rngs: nnx.Rngs) -> nnx.Embed:
    """A table of `count` vectors."""
    return nnx.Embed(count, size, embedding_init=EMBEDDING_INIT, rngs=rngs)


class Embeddings(nnx.Module):
    """Sum of token and position embeddings."""

    def __init__(self, config: CLIPTextConfig, *, rngs: nnx.Rngs):
        self.token_embedding = embedding(config.vocab_size, config.hidden_size, rngs=rngs)
        self.position_embedding = embedding(config.max_position_embeddings, config.hidden_size, rngs=rngs)

    def __call__(self, input_ids: Array) -> Array:
        """int [batch, tokens] to [batch, tokens, hidden_size]."""
        return self.token_embedding(input_ids) + self.position_embedding(jnp.arange(input_ids.shape[1]))


class Attention(nnx.Module):
    """Causal self-attention."""

    def __init__(self, config: CLIPTextConfig, *, rngs: nnx.Rngs):
        size = config.hidden_size
        self.heads = config.num_attention_heads
        self.k_proj = Linear(size, size, rngs=rngs)
        self.v_proj = Linear(size, size, rngs=rngs)
        self.q_proj = Linear(size, size, rngs=rngs)
        self.out_proj = Linear(size, size, rngs=rngs)

    def __call__(self, hidden: Array) -> Array:
        """[batch, tokens, hidden_size] to the same."""
        query, keys, values = (
            split_heads(project(hidden), self.heads) for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        tokens = jnp.arange(hidden.shape[1])
        causal = tokens[:, None] >= tokens
        return self.out_proj(merge_heads(plain_attention(query, keys, values, causal)))


class MLP(nnx.Module):
    """Two linear layers with CLIP's activation between."""

    def __init__(self, config: CLIPTextConfig, *, rngs: nnx.Rngs):
        self.activation = ACTIVATIONS[config.hidden_act]
        self.fc1 = Linear(config.hidden_size, config.intermediate_size, rngs=rngs)
        self.fc2 = Linear(config.intermediate_size, config.hidden_size, rngs=rngs)

    def __call__(self, hidden: Array) -> Array:
        """[batch, tokens, hidden_size] to the same."""
        return self.fc2(self.activation(self.fc1(hidden)))


class EncoderLayer(nnx.Module):
    """Attention and perceptron, each after a norm and inside a residual connection."""

    def __init__(self, config: CLIPTextConfig, *, rngs: nnx.Rngs):
        self.self_attn = Attention(config, rngs=rngs)
        self.layer_norm1 = layer_norm(config.hidden_size, config.layer_norm_eps, rngs=rngs)
        self.mlp = MLP(config, rngs=rngs)
        self.layer_norm2 = layer_norm(config.hidden_size, config.layer_norm_eps, rngs=rngs)

    def __call__(self, hidden: Array) -> Array:
        """[batch, tokens, hidden_size] to the same."""
        hidden = hidden + self.self_attn(self.layer_norm1(hidden))
        return hidden + self.mlp(self.layer_norm2(hidden))


class Encoder(nnx.Module):
    """The stack of layers."""

    def __init__(self, config: CLIPTextConfig, *, rngs: nnx.Rngs):
        self.layers = nnx.List(EncoderLayer(config, rngs=rngs) for _ in range(config.num_hidden_layers))

    def __call__(self, hidden: Array) -> Array:
        """[batch, tokens, hidden_size] to the same."""
        for layer in self.layers:
            hidden = traced_once(layer, hidden)
        return hidden


class TextTransformer(nnx.Module):
    """Embeddings, layers and a last norm."""

    def __init__(self, config: CLIPTextConfig, *, rngs: nnx.Rngs):
        self.embeddings = Embeddings(config, rngs=rngs)
        self.encoder = Encoder(config, rngs=rngs)
        self.final_layer_norm = layer_norm(config.hidden_size, config.layer_norm_eps, rngs=rngs)

    def __call__(self, input_ids: Array) -> Array:
        """int [batch, tokens] to [batch, tokens, hidden_size]."""
        return self.final_layer_norm(self.encoder(self.embeddings(input_ids)))


class CLIPTextModel(nnx.Module):
    """Token ids to the embeddings that the UNet attends to. As in Stable Diffusion, padding is not masked."""

    def __init__(self, config: CLIPTextConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.text_model = TextTransformer(config, rngs=rngs)

    def __call__(self, input_ids: Array) -> Array:
        """int [batch, tokens] to the last hidden state, after the last norm, [batch, tokens, hidden_size]."""
        return self.text_model(input_ids)
