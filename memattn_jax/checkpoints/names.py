"""Names and layouts of parameters in PyTorch.

Module paths are the same on both sides, so only the leaf is renamed and, for kernels, transposed. That depends on the
type of the layer that owns the leaf alone; there is no table of layers.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from flax import nnx

from memattn_jax.models.layers import Conv1x1, Conv3x3, Linear

# [h, w, in, out] to [out, in, h, w]
CONVOLUTION = {"kernel": ("weight", (3, 2, 0, 1)), "bias": ("bias", (0,))}
# {layer type: {our leaf: (PyTorch's leaf, axes of ours in PyTorch's order)}}
LEAVES: dict[type[nnx.Module], dict[str, tuple[str, tuple[int, ...]]]] = {
    Linear: {"kernel": ("weight", (1, 0)), "bias": ("bias", (0,))},  # [in, out] to [out, in]
    Conv3x3: CONVOLUTION,
    Conv1x1: CONVOLUTION,
    nnx.Conv: CONVOLUTION,
    nnx.GroupNorm: {"scale": ("weight", (0,)), "bias": ("bias", (0,))},
    nnx.LayerNorm: {"scale": ("weight", (0,)), "bias": ("bias", (0,))},
    nnx.Embed: {"embedding": ("weight", (0, 1))},
}


class Leaf(NamedTuple):
    """One parameter: where it lives in the module and how PyTorch stores it."""

    owner: nnx.Module
    attribute: str
    name: str
    axes: tuple[int, ...]

    @property
    def param(self) -> nnx.Param:
        """The parameter itself."""
        return getattr(self.owner, self.attribute)

    @property
    def torch_shape(self) -> tuple[int, ...]:
        """Its shape in PyTorch."""
        return tuple(self.param.shape[axis] for axis in self.axes)

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """Our layout to PyTorch's."""
        return np.ascontiguousarray(array.transpose(self.axes))

    def from_torch(self, array: np.ndarray) -> np.ndarray:
        """PyTorch's layout to ours."""
        return array.transpose(np.argsort(self.axes))


def leaves(module: nnx.Module) -> Iterator[Leaf]:
    """Every parameter of a module, concrete or abstract."""
    for path, owner in nnx.iter_modules(module):
        for attribute, (leaf, axes) in LEAVES.get(type(owner), {}).items():
            if getattr(owner, attribute) is not None:
                yield Leaf(owner, attribute, ".".join(map(str, (*path, leaf))), axes)


def modern_name(name: str) -> str | None:
    """The name of a stored tensor in PyTorch's current classes; None for one that no model needs.

    Stable Diffusion's checkpoints of 2022 use older names for the autoencoder's attention layers and contain the
    text encoder's position indices; transformers 5 leaves out the text encoder's outermost module. A text encoder may
    have been saved with CLIP's projection, which serves to compare texts with pictures.
    """
    if name.endswith("embeddings.position_ids") or name == "text_projection.weight":
        return None
    if name.startswith(("embeddings.", "encoder.layers.", "final_layer_norm.")):
        name = f"text_model.{name}"
    if "." not in name:
        return name
    *path, layer, leaf = name.split(".")
    if "mid_block" in path and "attentions" in path and "transformer_blocks" not in path:
        renamed = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
        layer = renamed.get(layer, layer)
    return ".".join((*path, layer, leaf))
