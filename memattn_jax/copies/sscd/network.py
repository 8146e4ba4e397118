"""SSCD's network: a ResNet, generalised mean pooling, a linear map to a unit vector.

Sources: Pizzi et al., "A Self-Supervised Descriptor for Image Copy Detection" (arXiv 2202.10261);
facebookresearch/sscd-copy-detection, sscd/models/model.py and gem_pooling.py; torchvision, models/resnet.py, whose
names of layers are ours. Batch norm is part of the convolutions' weights here, see `loading.fold`.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from memattn_jax.models.layers import BIAS_INIT, KERNEL_INIT, Conv1x1, Conv3x3, Linear

EPSILON = 1e-5  # of batch norms, for those who make them part of the convolutions
POWER = 3.0  # of the pooling
LEAST = 1e-6  # that is pooled
SHORTEST = 1e-12  # length of a vector that is divided by


@dataclass(frozen=True)
class Stage:
    """Residual blocks at one resolution.

    Attributes:
      blocks: their number.
      width: channels of the 3 × 3 convolutions.
      channels: of the result.
    """

    blocks: int
    width: int
    channels: int


@dataclass(frozen=True)
class Geometry:
    """What the tensors' shapes say of a network.

    Attributes:
      stem: channels after the first convolution.
      stages: each at half the resolution of the one before.
      groups: of the 3 × 3 convolutions; 1 is a ResNet, 32 the ResNeXt of `sscd_disc_large`.
      dimensions: of the embedding.
    """

    stem: int
    stages: tuple[Stage, ...]
    groups: int
    dimensions: int


class Bottleneck(nnx.Module):
    """Residual block of 1 × 1, 3 × 3 and 1 × 1 convolutions, of which the second has the stride (v1.5)."""

    def __init__(self, in_channels: int, stage: Stage, stride: int, groups: int, *, rngs: nnx.Rngs):
        width, channels = stage.width, stage.channels
        self.stride = stride
        self.conv1 = Conv1x1(in_channels, width, rngs=rngs)
        if groups == 1:
            self.conv2: nnx.Conv = Conv3x3(width, width, stride=stride, rngs=rngs)
        else:
            self.conv2 = nnx.Conv(
                width,
                width,
                (3, 3),
                strides=stride,
                padding=1,
                feature_group_count=groups,
                kernel_init=KERNEL_INIT,
                bias_init=BIAS_INIT,
                rngs=rngs,
            )
        self.conv3 = Conv1x1(width, channels, rngs=rngs)
        resized = stride != 1 or in_channels != channels
        self.downsample = Conv1x1(in_channels, channels, rngs=rngs) if resized else None

    def __call__(self, x: Array) -> Array:
        """[n, h, w, in_channels] to [n, ⌈h / stride⌉, ⌈w / stride⌉, channels]."""
        hidden = jax.nn.relu(self.conv2(jax.nn.relu(self.conv1(x))))
        residual = x if self.downsample is None else self.downsample(x[:, :: self.stride, :: self.stride])
        return jax.nn.relu(self.conv3(hidden) + residual)


class SSCD(nnx.Module):
    """Pictures to unit vectors."""

    def __init__(self, geometry: Geometry, *, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(
            3, geometry.stem, (7, 7), strides=2, padding=3, kernel_init=KERNEL_INIT, bias_init=BIAS_INIT, rngs=rngs
        )
        channels = geometry.stem
        for number, stage in enumerate(geometry.stages, 1):
            blocks = []
            for block in range(stage.blocks):
                stride = 2 if number > 1 and block == 0 else 1
                blocks.append(Bottleneck(channels, stage, stride, geometry.groups, rngs=rngs))
                channels = stage.channels
            setattr(self, f"layer{number}", nnx.List(blocks))
        self.stages = len(geometry.stages)
        self.fc = Linear(channels, geometry.dimensions, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """Normalised pictures [n, h, w, 3] to vectors of length 1, [n, dimensions]."""
        x = nnx.max_pool(jax.nn.relu(self.conv1(x)), (3, 3), (2, 2), ((1, 1), (1, 1)))
        for number in range(1, self.stages + 1):
            for block in getattr(self, f"layer{number}"):
                x = block(x)
        pooled = (jnp.maximum(x, LEAST) ** POWER).mean(axis=(1, 2)) ** (1 / POWER)
        vectors = self.fc(pooled)
        return vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=1, keepdims=True), SHORTEST)
