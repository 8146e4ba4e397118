"""The names of a single file's UNet in diffusers.

Source: CompVis/latent-diffusion, ldm/modules/diffusionmodules/openaimodel.py, UNetModel. It numbers the
blocks through: `input_blocks` are an initial convolution, then each level's residual layers, with or without attention,
and a downsampling after every level but the last; `output_blocks` are the same upwards.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from memattn_jax.checkpoints.single_file.renaming import Tensors, below, numbered, renamed, under

RESIDUAL = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
OUTSIDE = {  # of the numbered blocks
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


class Blocks(NamedTuple):
    """The numbered blocks of a UNet, those of the way down and up by level.

    Attributes:
      first: the initial convolution.
    """

    first: Tensors
    down: list[list[Tensors]]
    middle: list[Tensors]
    up: list[list[Tensors]]


def blocks_of(tensors: Tensors) -> Blocks:
    """Sorts the tensors of a UNet by block."""
    first, *down = numbered(below(tensors, "input_blocks.")) or [{}]
    up = numbered(below(tensors, "output_blocks."))
    middle: list[Tensors] = [*numbered(below(tensors, "middle_block."))]
    return Blocks(first, levels(down, "0.op.weight"), middle, levels(up, "1.conv.weight", "2.conv.weight"))


def levels(blocks: Sequence[Tensors], *resampling: str) -> list[list[Tensors]]:
    """The blocks of each level; a block with a tensor of one of the names in `resampling` ends its level."""
    found: list[list[Tensors]] = [[]]
    for block in blocks:
        found[-1].append(block)
        if any(name in block for name in resampling):
            found.append([])
    return found if found[-1] else found[:-1]


def modern_unet(tensors: Tensors) -> dict[str, np.ndarray]:
    """The tensors under diffusers' names; those whose names do not fit the layout are left out.

    Args:
      tensors: those below "model.diffusion_model.", without this prefix.
    """
    blocks = blocks_of(tensors)
    numbers = ("input_blocks.", "middle_block.", "output_blocks.")
    found = renamed({name: tensor for name, tensor in tensors.items() if not name.startswith(numbers)}, OUTSIDE)
    found |= under("conv_in", below(blocks.first, "0."))
    for way, by_level in (("down_blocks", blocks.down), ("up_blocks", blocks.up)):
        for level, of_level in enumerate(by_level):
            for layer, block in enumerate(of_level):
                found |= modern_block(f"{way}.{level}", layer, block)
    for layer, block in enumerate(blocks.middle):  # residual, attention, residual
        found |= modern_block("mid_block", layer // 2, {f"0.{name}": tensor for name, tensor in block.items()})
    return found


def modern_block(path: str, layer: int, block: Tensors) -> dict[str, np.ndarray]:
    """A numbered block: a residual layer, then attention where there is one, then resampling likewise."""
    found: dict[str, np.ndarray] = {}
    for part in numbered(block):
        if "op.weight" in part:
            found |= under(f"{path}.downsamplers.0", renamed(part, {"op": "conv"}))
        elif "conv.weight" in part:
            found |= under(f"{path}.upsamplers.0", part)
        elif "proj_in.weight" in part:
            found |= under(f"{path}.attentions.{layer}", part)
        else:
            found |= under(f"{path}.resnets.{layer}", renamed(part, RESIDUAL))
    return found
