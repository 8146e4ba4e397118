"""Layers that the UNet and the autoencoder share, after diffusers' `models/resnet.py` and `models/embeddings.py`.

A model computes in the dtype of its weights; norms take their statistics in float32. Scopes name what a profiler shows
of a compiled model: convolution, linear, self_attention and cross_attention.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from memattn_jax.models.kernels.convolution import convolve, upsample
from memattn_jax.models.kernels.products import matrix_product

Initializer = Callable[..., Any]
Result = TypeVar("Result")


def unless_abstract(initializer: Initializer) -> Initializer:
    """The initializer, and the shape and dtype alone where there is no key, as for abstract models."""

    def initialize(key: Array | None, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype) if key is None else initializer(key, shape, dtype)

    return initialize


KERNEL_INIT = unless_abstract(nnx.initializers.lecun_normal())
EMBEDDING_INIT = unless_abstract(nnx.initializers.variance_scaling(1.0, "fan_in", "normal", out_axis=0))
BIAS_INIT = unless_abstract(nnx.initializers.zeros_init())
SCALE_INIT = unless_abstract(nnx.initializers.ones_init())


@jax.jit
def traced_once(layer: Callable[..., Result], *inputs: Any) -> Result:
    """`layer(*inputs)`, which JAX traces and lowers once for all layers of one kind and size; XLA inlines the calls."""
    return layer(*inputs)


class Linear(nnx.Linear):
    """Linear map of the last axis, as one matrix product.

    With several leading axes, the gradient with respect to the weights contracts all of them, which XLA on a CPU does
    four times more slowly than one.
    """

    def __init__(self, in_features: int, out_features: int, *, use_bias: bool = True, rngs: nnx.Rngs):
        super().__init__(
            in_features, out_features, use_bias=use_bias, kernel_init=KERNEL_INIT, bias_init=BIAS_INIT, rngs=rngs
        )

    @jax.named_scope("linear")
    def __call__(self, x: Array) -> Array:  # type: ignore[override]  # no layer here names an output sharding
        """[..., in_features] to [..., out_features]."""
        flat = matrix_product(x.reshape(-1, x.shape[-1]), self.kernel[...])
        flat = flat if self.bias is None else flat + self.bias[...]
        return flat.reshape(*x.shape[:-1], -1)


def group_norm(channels: int, groups: int, eps: float, *, rngs: nnx.Rngs) -> nnx.GroupNorm:
    """Group norm whose variance is computed as PyTorch does, from the centred values."""
    return nnx.GroupNorm(
        channels,
        groups,
        epsilon=eps,
        use_fast_variance=False,
        bias_init=BIAS_INIT,
        scale_init=SCALE_INIT,
        rngs=rngs,
    )


def layer_norm(channels: int, eps: float, *, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Layer norm of the last axis, its variance computed as `group_norm`'s."""
    return nnx.LayerNorm(
        channels, epsilon=eps, use_fast_variance=False, bias_init=BIAS_INIT, scale_init=SCALE_INIT, rngs=rngs
    )


class Conv3x3(nnx.Conv):
    """Convolution that keeps height and width, or halves them with a stride of 2."""

    bias: nnx.Param

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int = 1,
        border: tuple[int, int] = (1, 1),
        rngs: nnx.Rngs,
    ):
        super().__init__(in_channels, out_channels, (3, 3), kernel_init=KERNEL_INIT, bias_init=BIAS_INIT, rngs=rngs)
        self.stride, self.border = stride, border

    @jax.named_scope("convolution")
    def __call__(self, x: Array) -> Array:  # type: ignore[override]  # no layer here names an output sharding
        """[batch, h, w, in_channels] to [batch, ⌈h / stride⌉, ⌈w / stride⌉, out_channels]."""
        return convolve(x, self.kernel[...], self.stride, self.border) + self.bias[...]


class Conv1x1(nnx.Conv):
    """The same linear map at every pixel, stored as a convolution."""

    bias: nnx.Param

    def __init__(self, in_channels: int, out_channels: int, *, rngs: nnx.Rngs):
        super().__init__(in_channels, out_channels, (1, 1), kernel_init=KERNEL_INIT, bias_init=BIAS_INIT, rngs=rngs)

    @jax.named_scope("convolution")
    def __call__(self, x: Array) -> Array:  # type: ignore[override]  # no layer here names an output sharding
        """[batch, h, w, in_channels] to [batch, h, w, out_channels]."""
        flat = x.reshape(-1, x.shape[-1])  # [batch · h · w, in_channels]
        return (matrix_product(flat, self.kernel[0, 0]) + self.bias[...]).reshape(*x.shape[:-1], -1)


def timestep_embedding(timesteps: Array, channels: int, *, flip_sin_to_cos: bool, freq_shift: float) -> Array:
    """Sinusoidal embedding of timesteps [batch], float32 [batch, channels] (diffusers `get_timestep_embedding`)."""
    half = channels // 2
    frequencies = jnp.exp(-jnp.log(10_000.0) * jnp.arange(half, dtype=jnp.float32) / (half - freq_shift))
    angles = timesteps.astype(jnp.float32)[:, None] * frequencies  # [batch, channels / 2]
    waves = (jnp.cos(angles), jnp.sin(angles)) if flip_sin_to_cos else (jnp.sin(angles), jnp.cos(angles))
    return jnp.concatenate(waves, axis=-1)


class TimestepEmbedding(nnx.Module):
    """Two-layer perceptron from the sinusoidal embedding to what every ResNet block receives."""

    def __init__(self, in_channels: int, channels: int, *, rngs: nnx.Rngs):
        self.linear_1 = Linear(in_channels, channels, rngs=rngs)
        self.linear_2 = Linear(channels, channels, rngs=rngs)

    def __call__(self, embedding: Array) -> Array:
        """[batch, in_channels] to [batch, channels]."""
        return self.linear_2(jax.nn.silu(self.linear_1(embedding)))


class ResnetBlock2D(nnx.Module):
    """Two convolutions with a residual connection; the UNet's also add the timestep embedding."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        groups: int,
        eps: float,
        time_channels: int | None = None,
        rngs: nnx.Rngs,
    ):
        self.norm1 = group_norm(in_channels, groups, eps, rngs=rngs)
        self.conv1 = Conv3x3(in_channels, out_channels, rngs=rngs)
        if time_channels is not None:
            self.time_emb_proj = Linear(time_channels, out_channels, rngs=rngs)
        self.norm2 = group_norm(out_channels, groups, eps, rngs=rngs)
        self.conv2 = Conv3x3(out_channels, out_channels, rngs=rngs)
        self.conv_shortcut = Conv1x1(in_channels, out_channels, rngs=rngs) if in_channels != out_channels else None

    def __call__(self, hidden: Array, time: Array | None = None) -> Array:
        """Hidden [batch, height, width, in_channels], time [batch, time_channels] or None."""
        residual = hidden if self.conv_shortcut is None else self.conv_shortcut(hidden)
        hidden = self.conv1(jax.nn.silu(self.norm1(hidden)))
        if time is not None:
            hidden = hidden + self.time_emb_proj(jax.nn.silu(time))[:, None, None, :]
        hidden = self.conv2(jax.nn.silu(self.norm2(hidden)))
        return hidden + residual


class Downsample2D(nnx.Module):
    """Halves height and width by a strided convolution.

    The UNet pads by one on each side, the autoencoder's encoder only after the last row and column.
    """

    def __init__(self, channels: int, *, border: tuple[int, int] = (1, 1), rngs: nnx.Rngs):
        self.conv = Conv3x3(channels, channels, stride=2, border=border, rngs=rngs)

    def __call__(self, hidden: Array) -> Array:
        """[batch, height, width, channels] to [batch, ⌈height / 2⌉, ⌈width / 2⌉, channels]."""
        return self.conv(hidden)


class Upsample2D(nnx.Module):
    """Doubles height and width by repeating pixels, then convolves."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.conv = Conv3x3(channels, channels, rngs=rngs)

    @jax.named_scope("convolution")
    def __call__(self, hidden: Array, size: tuple[int, int] | None = None) -> Array:
        """[batch, h, w, channels] to [batch, *size, channels], size 2h × 2w or one less.

        Odd sizes occur where the latents are no multiple of the UNet's total stride: the skip connection's size is
        then one less than the double, and PyTorch's nearest-neighbour index is `i // 2` for both.
        """
        double = (2 * hidden.shape[1], 2 * hidden.shape[2])
        if size is None or size == double:
            return upsample(hidden, self.conv.kernel[...]) + self.conv.bias[...]
        hidden = hidden.repeat(2, axis=1).repeat(2, axis=2)
        return self.conv(hidden[:, : size[0], : size[1], :])
