"""The names that tensors have in a single file, from diffusers' names: the way back from `unet`, `vae` and `text`."""

import re
from collections.abc import Mapping

from memattn_jax.checkpoints.single_file import text, unet, vae
from memattn_jax.models.configs import UNetConfig, VAEConfig


def original_unet(name: str, config: UNetConfig) -> str:
    """A UNet's tensor, below "model.diffusion_model."."""
    found = re.match(r"(down|up|mid)_block(?:s\.(\d+))?\.(\w+)\.(\d+)\.(.+)", name)
    if found is None:
        module, _, leaf = name.rpartition(".")
        return f"{back({**unet.OUTSIDE, 'input_blocks.0.0': 'conv_in'}, module)}.{leaf}"
    way, level, kind, layer = found[1], int(found[2] or 0), found[3], int(found[4])
    if kind == "resnets":
        module, _, leaf = found[5].rpartition(".")
        inside = f"{back(unet.RESIDUAL, module)}.{leaf}"
    else:
        inside = found[5]
    if way == "mid":
        return f"middle_block.{1 if kind == 'attentions' else 2 * layer}.{inside}"
    part = 0 if kind == "resnets" else 1
    if way == "down":
        if kind == "downsamplers":
            layer, part, inside = config.layers[level], 0, inside.replace("conv", "op")
        return f"input_blocks.{1 + sum(config.layers[:level]) + level + layer}.{part}.{inside}"
    layers = [count + 1 for count in reversed(config.layers)]
    if kind == "upsamplers":
        layer, part = layers[level] - 1, 2 if config.up_block_types[level].startswith("CrossAttn") else 1
    return f"output_blocks.{sum(layers[:level]) + layer}.{part}.{inside}"


def original_vae(name: str, config: VAEConfig) -> str:
    """An autoencoder's tensor, below "first_stage_model."; attention weights are [out, in, 1, 1] there."""
    last = len(config.block_out_channels) - 1

    def level(match: re.Match[str]) -> str:
        number = match[2] if match[1] == "down" else str(last - int(match[2]))
        return f"{match[1]}.{number}.{'block.' + match[4] if match[3] == 'resnets' else match[1] + 'sample'}"

    name = re.sub(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)", level, name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda match: f"mid.block_{int(match[1]) + 1}", name)
    if found := re.fullmatch(r"(.+)mid_block\.attentions\.0\.(.+)\.(\w+)", name):
        return f"{found[1]}mid.attn_1.{back(vae.ATTENTION, found[2])}.{found[3]}"
    return name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")


def original_openclip(name: str) -> str:
    """A tensor of the text encoder in OpenCLIP's names, below "cond_stage_model.model."; not those of q, k and v."""
    name = name.removeprefix("text_model.")
    if name == "embeddings.position_embedding.weight":
        return "positional_embedding"
    found = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(\w+)", name)
    if found is None:
        return name.replace("embeddings.", "").replace("final_layer_norm", "ln_final")
    return f"transformer.resblocks.{found[1]}.{back(text.LAYER, found[2])}.{found[3]}"


def back(names: Mapping[str, str], name: str) -> str:
    """The key of a value; a value that is not there stays as it is."""
    return {value: key for key, value in names.items()}.get(name, name)
