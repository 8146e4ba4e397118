"""The names of a single file's autoencoder in diffusers.

Source: CompVis/latent-diffusion, ldm/modules/diffusionmodules/model.py, Encoder and Decoder. Levels of the
decoder are numbered from the picture, in diffusers from the latents.
"""

import numpy as np

from memattn_jax.checkpoints.single_file.renaming import Tensors, below, numbered, renamed, under

RESIDUAL = {"nin_shortcut": "conv_shortcut"}
ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
WAYS = {"encoder": ("down", "downsample", "downsamplers"), "decoder": ("up", "upsample", "upsamplers")}


def modern_vae(tensors: Tensors) -> dict[str, np.ndarray]:
    """The tensors under diffusers' names; those whose names do not fit the layout are left out.

    Args:
      tensors: those below "first_stage_model.", without this prefix.
    """
    found = {name: tensor for name, tensor in tensors.items() if not name.startswith(("encoder.", "decoder."))}
    for way, (prefix, resampling, resamplers) in WAYS.items():
        of_way = below(tensors, f"{way}.")
        outside = {name: t for name, t in of_way.items() if not name.startswith((f"{prefix}.", "mid."))}
        found |= under(way, renamed(outside, {"norm_out": "conv_norm_out"}))
        by_level = numbered(below(of_way, f"{prefix}."))
        for number, level in enumerate(by_level if prefix == "down" else reversed(by_level)):
            path = f"{way}.{prefix}_blocks.{number}"
            for layer, block in enumerate(numbered(below(level, "block."))):
                found |= under(f"{path}.resnets.{layer}", renamed(block, RESIDUAL))
            found |= under(f"{path}.{resamplers}.0", below(level, f"{resampling}."))
        middle = below(of_way, "mid.")
        for layer in (0, 1):
            block = below(middle, f"block_{layer + 1}.")
            found |= under(f"{way}.mid_block.resnets.{layer}", renamed(block, RESIDUAL))
        attention = renamed(below(middle, "attn_1."), ATTENTION)
        found |= under(f"{way}.mid_block.attentions.0", {name: linear(tensor) for name, tensor in attention.items()})
    return found


def linear(tensor: np.ndarray) -> np.ndarray:
    """The weights of a convolution over single pixels, [out, in, 1, 1], as those of a linear layer; others as is."""
    return tensor.reshape(tensor.shape[:2]) if tensor.shape[2:] == (1, 1) else tensor
