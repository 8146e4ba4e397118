"""UNet2DConditionModel of Stable Diffusion 1.x and 2.x, after diffusers' `unet_2d_condition.py`.

Latents [batch, height, width, 4] run down through four resolutions, through a middle block and up again, each ResNet
output on the way down joining its mirror image on the way up. Text enters by cross-attention alone, so keys and
values of the text are computed once per prompt and every layer's attention passes the interceptor's seam.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from memattn_jax.interceptors import Interceptor, by_name
from memattn_jax.models.attention import CrossAttention, Taps, Text, Transformer2DModel
from memattn_jax.models.configs import UNetConfig
from memattn_jax.models.layers import (
    Conv3x3,
    Downsample2D,
    ResnetBlock2D,
    TimestepEmbedding,
    Upsample2D,
    group_norm,
    timestep_embedding,
    traced_once,
)


def resnet(config: UNetConfig, in_channels: int, out_channels: int, *, rngs: nnx.Rngs) -> ResnetBlock2D:
    """A block with the UNet's norms and timestep embedding."""
    return ResnetBlock2D(
        in_channels,
        out_channels,
        groups=config.norm_num_groups,
        eps=config.norm_eps,
        time_channels=4 * config.block_out_channels[0],
        rngs=rngs,
    )


def transformers(
    config: UNetConfig, level: int, count: int, *, cross_only: bool | None = None, rngs: nnx.Rngs
) -> nnx.List:
    """Transformers of one resolution; `cross_only` is the config's for that level unless given."""
    return nnx.List(
        Transformer2DModel(
            config.block_out_channels[level],
            config.cross_attention_dim,
            config.heads[level],
            layers=config.transformer_layers[level],
            groups=config.norm_num_groups,
            linear_projection=config.use_linear_projection,
            cross_only=config.cross_only[level] if cross_only is None else cross_only,
            rngs=rngs,
        )
        for _ in range(count)
    )


class DownBlock(nnx.Module):
    """DownBlock2D and CrossAttnDownBlock2D: ResNets, each followed by a transformer or not, then a downsampler."""

    def __init__(self, config: UNetConfig, level: int, *, rngs: nnx.Rngs):
        channels, layers = config.block_out_channels[level], config.layers[level]
        previous = config.block_out_channels[max(level - 1, 0)]
        self.resnets = nnx.List(resnet(config, channels if i else previous, channels, rngs=rngs) for i in range(layers))
        attends = config.down_block_types[level] == "CrossAttnDownBlock2D"
        self.attentions = transformers(config, level, layers, rngs=rngs) if attends else None
        last = level == len(config.block_out_channels) - 1
        self.downsamplers = None if last else nnx.List([Downsample2D(channels, rngs=rngs)])

    def __call__(
        self, hidden: Array, time: Array, text: Text, interceptor: Interceptor
    ) -> tuple[Array, list[Array], Taps]:
        """[batch, h, w, channels] to half the size, the skip connections and the taps."""
        skips: list[Array] = []
        taps: Taps = {}
        for i, block in enumerate(self.resnets):
            hidden = traced_once(block, hidden, time)
            if self.attentions is not None:
                hidden, new = self.attentions[i](hidden, text, interceptor)
                taps |= new
            skips.append(hidden)
        if self.downsamplers is not None:
            hidden = self.downsamplers[0](hidden)
            skips.append(hidden)
        return hidden, skips, taps


class MidBlock(nnx.Module):
    """UNetMidBlock2DCrossAttn: ResNet, transformer, ResNet at the lowest resolution."""

    def __init__(self, config: UNetConfig, *, rngs: nnx.Rngs):
        channels = config.block_out_channels[-1]
        self.attentions = transformers(config, -1, 1, cross_only=False, rngs=rngs)
        self.resnets = nnx.List([resnet(config, channels, channels, rngs=rngs) for _ in range(2)])

    def __call__(self, hidden: Array, time: Array, text: Text, interceptor: Interceptor) -> tuple[Array, Taps]:
        """[batch, h, w, channels] to the same, and the taps."""
        hidden = traced_once(self.resnets[0], hidden, time)
        hidden, taps = self.attentions[0](hidden, text, interceptor)
        return traced_once(self.resnets[1], hidden, time), taps


class UpBlock(nnx.Module):
    """UpBlock2D and CrossAttnUpBlock2D: as on the way down, each ResNet taking one skip connection, one layer more.

    Args:
      position: 0 for the lowest resolution, whose mirror image is the last down block.
    """

    def __init__(self, config: UNetConfig, position: int, *, rngs: nnx.Rngs):
        blocks = len(config.block_out_channels)
        level = blocks - 1 - position
        channels, layers = config.block_out_channels[level], config.layers[level] + 1
        below = config.block_out_channels[min(level + 1, blocks - 1)]  # channels that arrive from the block below
        above = config.block_out_channels[max(level - 1, 0)]  # channels of the first skip of the mirror block
        self.resnets = nnx.List(
            resnet(
                config,
                (channels if i else below) + (channels if i < layers - 1 else above),
                channels,
                rngs=rngs,
            )
            for i in range(layers)
        )
        attends = config.up_block_types[position] == "CrossAttnUpBlock2D"
        self.attentions = transformers(config, level, layers, rngs=rngs) if attends else None
        self.upsamplers = nnx.List([Upsample2D(channels, rngs=rngs)]) if level > 0 else None

    def __call__(
        self,
        hidden: Array,
        skips: list[Array],
        time: Array,
        text: Text,
        interceptor: Interceptor,
        size: tuple[int, int] | None,
    ) -> tuple[Array, Taps]:
        """[batch, h, w, channels] to [batch, *size, channels] and the taps; the last skip connection comes first."""
        taps: Taps = {}
        for i, block in enumerate(self.resnets):
            hidden = traced_once(block, jnp.concatenate([hidden, skips[-1 - i]], axis=-1), time)
            if self.attentions is not None:
                hidden, new = self.attentions[i](hidden, text, interceptor)
                taps |= new
        if self.upsamplers is not None:
            hidden = self.upsamplers[0](hidden, size)
        return hidden, taps


class UNet2DConditionModel(nnx.Module):
    """Predicts noise (or velocity, as the checkpoint was trained) from noisy latents and text.

    Attributes:
      config: the geometry.
      sites: names of the cross-attention layers in forward order.
      remat: whether a backward pass computes each block again instead of keeping its insides; set it before training
        where memory is short.
    """

    def __init__(self, config: UNetConfig, *, rngs: nnx.Rngs):
        channels = config.block_out_channels
        blocks = range(len(channels))
        self.config = config
        self.remat = False
        self.conv_in = Conv3x3(config.in_channels, channels[0], rngs=rngs)
        self.time_embedding = TimestepEmbedding(channels[0], 4 * channels[0], rngs=rngs)
        self.down_blocks = nnx.List(DownBlock(config, level, rngs=rngs) for level in blocks)
        self.mid_block = None if config.mid_block_type is None else MidBlock(config, rngs=rngs)
        self.up_blocks = nnx.List(UpBlock(config, position, rngs=rngs) for position in blocks)
        self.conv_norm_out = group_norm(channels[0], config.norm_num_groups, config.norm_eps, rngs=rngs)
        self.conv_out = Conv3x3(channels[0], config.out_channels, rngs=rngs)
        for path, module in nnx.iter_modules(self):
            if isinstance(module, CrossAttention):
                module.site = ".".join(map(str, path))

    def _run(self, block: nnx.Module, *inputs: Any, **options: Any) -> Any:
        def call(block: nnx.Module, *inputs: Any) -> Any:
            return block(*inputs, **options)

        return (jax.checkpoint(call) if self.remat else call)(block, *inputs)

    def _cross_attentions(self) -> list[CrossAttention]:
        parts = (*self.down_blocks, self.mid_block, *self.up_blocks)
        stacks = (stack for part in parts if part is not None for stack in part.attentions or ())
        blocks = (block for stack in stacks for block in stack.transformer_blocks)
        layers = (layer for block in blocks for layer in (block.attn1, block.attn2))
        return [layer for layer in layers if isinstance(layer, CrossAttention)]

    @property
    def sites(self) -> tuple[str, ...]:
        """See the class."""
        return tuple(layer.site for layer in self._cross_attentions())

    @property
    def dtype(self) -> jnp.dtype:
        """Of the weights, and so of the computation."""
        return self.conv_in.kernel.dtype

    def text_keys_values(self, context: Array) -> Text:
        """Keys and values of text embeddings [batch, tokens, cross_attention_dim] at every site."""
        context = context.astype(self.dtype)
        return {layer.site: layer.keys_values(context) for layer in self._cross_attentions()}

    def _down(
        self, latents: Array, timesteps: Array, context: Array | Text, interceptor: Interceptor
    ) -> tuple[Array, list[Array], Array, Text, Interceptor, Taps]:
        """Down to the bottleneck: its output, then what the way up needs, and the taps."""
        interceptor.check_sites(self.sites)
        interceptor = interceptor.at(timesteps)
        text = context if isinstance(context, dict) else self.text_keys_values(context)
        dtype = self.dtype
        embedding = timestep_embedding(
            jnp.broadcast_to(timesteps, latents.shape[:1]),
            self.config.block_out_channels[0],
            flip_sin_to_cos=self.config.flip_sin_to_cos,
            freq_shift=self.config.freq_shift,
        )
        time = self.time_embedding(embedding.astype(dtype))  # [batch, 4 · channels]

        hidden = self.conv_in(latents.astype(dtype))
        skips = [hidden]
        taps: Taps = {}
        for down in self.down_blocks:
            hidden, outputs, new = self._run(down, hidden, time, text, interceptor)
            skips += outputs
            taps |= new
        if self.mid_block is not None:
            hidden, new = self._run(self.mid_block, hidden, time, text, interceptor)
            taps |= new
        return hidden, skips, time, text, interceptor, taps

    def bottleneck(self, latents: Array, timesteps: Array, context: Array | Text) -> Array:
        """The output of the middle block, [batch, h, w, channels] at the lowest resolution; arguments as in a call.

        A model without such a block gives that of its last block on the way down.
        """
        return self._down(latents, timesteps, context, Interceptor())[0]

    def __call__(
        self,
        latents: Array,
        timesteps: Array,
        context: Array | Text,
        interceptor: Interceptor = Interceptor(),  # noqa: B008 -- immutable
    ) -> tuple[Array, Taps]:
        """One forward pass.

        Args:
          latents: [batch, height, width, in_channels], any height and width.
          timesteps: [] or [batch], in the noise schedule's training steps.
          context: text embeddings [batch, tokens, cross_attention_dim], or their `text_keys_values`. Where it has fewer
            rows, the batch is a multiple, and each text serves that many neighbouring rows.
          interceptor: what to edit and what to return of the cross-attention.

        Returns:
          The prediction [batch, height, width, out_channels] in the dtype of the weights, and `{name: {site: tap}}`.

        Raises:
          InputError: the interceptor names a site that this model lacks.
        """
        hidden, skips, time, text, interceptor, taps = self._down(latents, timesteps, context, interceptor)
        for up in self.up_blocks:
            skips, own = skips[: -len(up.resnets)], skips[-len(up.resnets) :]
            size = (skips[-1].shape[1], skips[-1].shape[2]) if skips else None
            hidden, new = self._run(up, hidden, own, time, text, interceptor, size=size)
            taps |= new
        return self.conv_out(jax.nn.silu(self.conv_norm_out(hidden))), by_name(taps, interceptor.taps)
