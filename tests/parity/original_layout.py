"""PyTorch models written in the layout of CompVis and Stability AI, as their training code saves them."""

import re

import torch

RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET = {
    "time_embedding.linear_1.": "time_embed.0.",
    "time_embedding.linear_2.": "time_embed.2.",
    "conv_in.": "input_blocks.0.0.",
    "conv_norm_out.": "out.0.",
    "conv_out.": "out.2.",
    "mid_block.resnets.0.": "middle_block.0.",
    "mid_block.attentions.0.": "middle_block.1.",
    "mid_block.resnets.1.": "middle_block.2.",
}
OPENCLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def of_unet(unet) -> dict[str, torch.Tensor]:
    """UNetModel's names: blocks are numbered through, `layers` and a resampling a level down, one more a level up."""
    layers = unet.config.layers_per_block
    levels = len(unet.config.block_out_channels)

    def name(theirs: str) -> str:
        for start, ours in UNET.items():
            if theirs.startswith(start):
                return inside(ours + theirs.removeprefix(start))
        way, level, kind, layer, rest = re.match(r"(\w+)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.*)", theirs).groups()
        level, layer = int(level), int(layer)
        if way == "down":
            number, inner = 1 + level * (layers + 1) + layer, {"resnets": "0", "attentions": "1"}.get(kind)
            if kind == "downsamplers":
                number, inner, rest = (level + 1) * (layers + 1), "0", rest.replace("conv.", "op.")
            return inside(f"input_blocks.{number}.{inner}.{rest}")
        number, inner = level * (layers + 1) + layer, {"resnets": "0", "attentions": "1"}.get(kind)
        if kind == "upsamplers":
            attention = unet.config.up_block_types[level].startswith("CrossAttn")
            number, inner = level * (layers + 1) + layers, "2" if attention else "1"
        return inside(f"output_blocks.{number}.{inner}.{rest}")

    def inside(theirs: str) -> str:
        for ours, original in RESIDUAL.items():
            theirs = theirs.replace(f".{ours}.", f".{original}.") if "transformer_blocks" not in theirs else theirs
        return theirs

    assert levels > 1
    return {name(theirs): tensor for theirs, tensor in unet.state_dict().items()}


def of_vae(vae) -> dict[str, torch.Tensor]:
    """AutoencoderKL's names in latent-diffusion, whose attention layers are convolutions over single pixels."""
    last = len(vae.config.block_out_channels) - 1
    found = {}
    for theirs, tensor in vae.state_dict().items():
        name = theirs.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda match: f"mid.block_{int(match[1]) + 1}", name)
        name = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", name)
        name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
        name = re.sub(r"up_blocks\.(\d+)\.resnets", lambda match: f"up.{last - int(match[1])}.block", name)
        name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda match: f"up.{last - int(match[1])}.upsample", name)
        if "mid_block.attentions.0" in name:
            for ours, original in (("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v")):
                name = name.replace(f".{ours}.", f".{original}.")
            name = name.replace("mid_block.attentions.0", "mid.attn_1").replace("to_out.0", "proj_out")
            tensor = tensor[..., None, None] if tensor.ndim == 2 else tensor
        found[name] = tensor
    return found


def of_openclip(text_encoder) -> dict[str, torch.Tensor]:
    """OpenCLIP's text tower, with one layer more than is used, and with what only compares texts with pictures."""
    theirs = {name.removeprefix("text_model."): tensor for name, tensor in text_encoder.state_dict().items()}
    channels, layers = text_encoder.config.hidden_size, text_encoder.config.num_hidden_layers
    found = {
        "token_embedding.weight": theirs["embeddings.token_embedding.weight"],
        "positional_embedding": theirs["embeddings.position_embedding.weight"],
        "ln_final.weight": theirs["final_layer_norm.weight"],
        "ln_final.bias": theirs["final_layer_norm.bias"],
        "text_projection": torch.randn(channels, channels),
        "logit_scale": torch.tensor(4.6),
    }
    for layer in range(layers + 1):
        source = f"encoder.layers.{min(layer, layers - 1)}"
        target = f"transformer.resblocks.{layer}"
        for leaf in ("weight", "bias"):
            parts = [theirs[f"{source}.self_attn.{name}_proj.{leaf}"] for name in "qkv"]
            found[f"{target}.attn.in_proj_{leaf}"] = torch.cat(parts)
            for ours, original in OPENCLIP.items():
                found[f"{target}.{original}.{leaf}"] = theirs[f"{source}.{ours}.{leaf}"].clone()
    return found


def single_file(pipe, *, openclip: bool) -> dict[str, torch.Tensor]:
    """A whole model's state dict, with the buffers that training leaves in it."""
    text = of_openclip(pipe.text_encoder) if openclip else pipe.text_encoder.state_dict()
    if not openclip and not next(iter(text)).startswith("text_model."):  # transformers 5 leaves it out
        text = {f"text_model.{name}": tensor for name, tensor in text.items()}
    alphas = pipe.scheduler.alphas_cumprod
    parts = {
        "model.diffusion_model.": of_unet(pipe.unet),
        "first_stage_model.": of_vae(pipe.vae),
        "cond_stage_model.model." if openclip else "cond_stage_model.transformer.": text,
        "": {"betas": pipe.scheduler.betas, "alphas_cumprod": alphas, "sqrt_alphas_cumprod": alphas.sqrt()},
    }
    return {prefix + name: tensor.contiguous() for prefix, part in parts.items() for name, tensor in part.items()}
