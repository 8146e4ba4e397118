"""AutoencoderKL, between images and latents, after diffusers' `autoencoder_kl.py`."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from memattn_jax.models.attention import SelfAttention
from memattn_jax.models.configs import VAEConfig
from memattn_jax.models.layers import (
    Conv1x1,
    Conv3x3,
    Downsample2D,
    ResnetBlock2D,
    Upsample2D,
    group_norm,
    traced_once,
)

EPS = 1e-6  # of every group norm; fixed in diffusers too


class Posterior(NamedTuple):
    """Diagonal Gaussian over latents [batch, height, width, latent_channels], before the scaling factor."""

    mean: Array
    log_variance: Array

    def sample(self, key: Array) -> Array:
        """One draw per row, the shape of `mean`."""
        noise = jax.random.normal(key, self.mean.shape, self.mean.dtype)
        return self.mean + jnp.exp(0.5 * self.log_variance) * noise


def resnet(config: VAEConfig, in_channels: int, out_channels: int, *, rngs: nnx.Rngs) -> ResnetBlock2D:
    """A block without timestep embedding."""
    return ResnetBlock2D(in_channels, out_channels, groups=config.norm_num_groups, eps=EPS, rngs=rngs)


class PixelAttention(SelfAttention):
    """One head of self-attention over a feature map, with its norm and residual connection."""

    def __init__(self, config: VAEConfig, channels: int, *, rngs: nnx.Rngs):
        super().__init__(channels, heads=1, use_bias=True, rngs=rngs)
        self.group_norm = group_norm(channels, config.norm_num_groups, EPS, rngs=rngs)

    def __call__(self, hidden: Array) -> Array:
        """[batch, height, width, channels] to the same."""
        batch, height, width, channels = hidden.shape
        pixels = self.group_norm(hidden).reshape(batch, height * width, channels)
        return hidden + super().__call__(pixels).reshape(hidden.shape)


class MidBlock(nnx.Module):
    """ResNet, attention, ResNet at the latents' resolution."""

    def __init__(self, config: VAEConfig, *, rngs: nnx.Rngs):
        channels = config.block_out_channels[-1]
        self.resnets = nnx.List(resnet(config, channels, channels, rngs=rngs) for _ in range(2))
        attends = config.mid_block_add_attention
        self.attentions = nnx.List([PixelAttention(config, channels, rngs=rngs)]) if attends else None

    def __call__(self, hidden: Array) -> Array:
        """[batch, height, width, channels] to the same."""
        hidden = traced_once(self.resnets[0], hidden)
        if self.attentions is not None:
            hidden = self.attentions[0](hidden)
        return traced_once(self.resnets[1], hidden)


class DownBlock(nnx.Module):
    """DownEncoderBlock2D."""

    def __init__(self, config: VAEConfig, level: int, *, rngs: nnx.Rngs):
        channels = config.block_out_channels[level]
        previous = config.block_out_channels[max(level - 1, 0)]
        self.resnets = nnx.List(
            resnet(config, channels if i else previous, channels, rngs=rngs) for i in range(config.layers_per_block)
        )
        last = level == len(config.block_out_channels) - 1
        self.downsamplers = None if last else nnx.List([Downsample2D(channels, border=(0, 1), rngs=rngs)])

    def __call__(self, hidden: Array) -> Array:
        """[batch, height, width, channels] to half the size, except in the last block."""
        for layer in (*self.resnets, *(self.downsamplers or ())):
            hidden = traced_once(layer, hidden)
        return hidden


class UpBlock(nnx.Module):
    """UpDecoderBlock2D; `position` 0 is at the latents' resolution."""

    def __init__(self, config: VAEConfig, position: int, *, rngs: nnx.Rngs):
        level = len(config.block_out_channels) - 1 - position
        channels = config.block_out_channels[level]
        below = config.block_out_channels[min(level + 1, len(config.block_out_channels) - 1)]
        self.resnets = nnx.List(
            resnet(config, channels if i else below, channels, rngs=rngs) for i in range(config.layers_per_block + 1)
        )
        self.upsamplers = nnx.List([Upsample2D(channels, rngs=rngs)]) if level > 0 else None

    def __call__(self, hidden: Array) -> Array:
        """[batch, height, width, channels] to double the size, except in the last block."""
        for layer in (*self.resnets, *(self.upsamplers or ())):
            hidden = traced_once(layer, hidden)
        return hidden


class Encoder(nnx.Module):
    """Pictures [batch, H, W, 3] to the moments of the latents, [batch, H / scale, W / scale, 2 · latent_channels]."""

    def __init__(self, config: VAEConfig, *, rngs: nnx.Rngs):
        channels = config.block_out_channels
        self.conv_in = Conv3x3(config.in_channels, channels[0], rngs=rngs)
        self.down_blocks = nnx.List(DownBlock(config, level, rngs=rngs) for level in range(len(channels)))
        self.mid_block = MidBlock(config, rngs=rngs)
        self.conv_norm_out = group_norm(channels[-1], config.norm_num_groups, EPS, rngs=rngs)
        self.conv_out = Conv3x3(channels[-1], 2 * config.latent_channels, rngs=rngs)

    def __call__(self, pictures: Array) -> Array:
        """See the class."""
        hidden = self.conv_in(pictures)
        for block in self.down_blocks:
            hidden = block(hidden)
        hidden = self.mid_block(hidden)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(hidden)))


class Decoder(nnx.Module):
    """Latents [batch, h, w, latent_channels] to images [batch, h · scale, w · scale, 3]."""

    def __init__(self, config: VAEConfig, *, rngs: nnx.Rngs):
        channels = config.block_out_channels
        self.conv_in = Conv3x3(config.latent_channels, channels[-1], rngs=rngs)
        self.mid_block = MidBlock(config, rngs=rngs)
        self.up_blocks = nnx.List(UpBlock(config, position, rngs=rngs) for position in range(len(channels)))
        self.conv_norm_out = group_norm(channels[0], config.norm_num_groups, EPS, rngs=rngs)
        self.conv_out = Conv3x3(channels[0], config.out_channels, rngs=rngs)

    def __call__(self, latents: Array) -> Array:
        """See the class."""
        hidden = self.mid_block(self.conv_in(latents))
        for block in self.up_blocks:
            hidden = block(hidden)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(hidden)))


class AutoencoderKL(nnx.Module):
    """Variational autoencoder; images have values in [-1, 1]. Computes in the dtype of its weights."""

    def __init__(self, config: VAEConfig, *, rngs: nnx.Rngs):
        latent = config.latent_channels
        self.config = config
        self.encoder = Encoder(config, rngs=rngs)
        self.decoder = Decoder(config, rngs=rngs)
        self.quant_conv = Conv1x1(2 * latent, 2 * latent, rngs=rngs) if config.use_quant_conv else None
        self.post_quant_conv = Conv1x1(latent, latent, rngs=rngs) if config.use_post_quant_conv else None

    def encode(self, pictures: Array) -> Posterior:
        """Pictures [batch, H, W, 3] to the posterior of their latents; multiply a draw by `scaling_factor`."""
        moments = self.encoder(pictures.astype(self.encoder.conv_in.kernel.dtype))
        if self.quant_conv is not None:
            moments = self.quant_conv(moments)
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        return Posterior(mean, jnp.clip(log_variance, -30.0, 20.0))

    def decode(self, latents: Array) -> Array:
        """Latents [batch, h, w, latent_channels], divided by `scaling_factor`, to images [batch, H, W, 3]."""
        latents = latents.astype(self.decoder.conv_in.kernel.dtype)
        if self.post_quant_conv is not None:
            latents = self.post_quant_conv(latents)
        return self.decoder(latents)
