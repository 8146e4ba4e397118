"""LoRA files in the styles of PyTorch's tools, merged there and here."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers, convert_state_dict_to_kohya
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from memattn_jax.checkpoints.checkpoint import Part
from memattn_jax.checkpoints.lora.compvis import compvis_names
from memattn_jax.checkpoints.lora.merge import with_loras
from memattn_jax.models.configs import UNetConfig

Weights = dict[str, np.ndarray]


def weights(module: torch.nn.Module) -> Weights:
    """By the names of this package, which keep the text encoder's outermost module."""
    found = {name: tensor.detach().clone().numpy() for name, tensor in module.state_dict().items()}
    return {f"text_model.{name}" if name.startswith(("enc", "emb", "fin")) else name: found[name] for name in found}


def randomize(parameters, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))


def merge(base: Weights, *loras: tuple[Path, float], text: Weights | None = None) -> Weights:
    """Merged here."""
    own = {"unet": base, "text_encoder": text or {}}
    parts = {name: Part(name, UNetConfig(), lambda tensors=tensors: tensors) for name, tensors in own.items()}
    merged = {}
    for name, part in with_loras(parts, loras).items():
        assert part.change is not None
        merged |= {key: part.change(key, array) for key, array in own[name].items()}
    return merged


def check(ours: Weights, theirs: Weights, base: Weights, changed: int) -> None:
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        np.testing.assert_allclose(ours[name], array, atol=1e-5, rtol=1e-5, err_msg=name)
    assert sum(not np.array_equal(theirs[name], base[name]) for name in base) == changed


def old_names(key: str) -> str:
    """As diffusers' attention processors and text encoder were saved in 2023."""
    key = key.replace(".to_out.0.lora", ".to_out.lora")
    for letter in ("q", "k", "v", "out"):
        key = key.replace(f".to_{letter}.lora_A.", f".processor.to_{letter}_lora.down.")
        key = key.replace(f".to_{letter}.lora_B.", f".processor.to_{letter}_lora.up.")
        key = key.replace(f"self_attn.{letter}_proj.lora_A.", f"self_attn.to_{letter}_lora.down.")
        key = key.replace(f"self_attn.{letter}_proj.lora_B.", f"self_attn.to_{letter}_lora.up.")
    if key.startswith("text_encoder."):
        key = key.replace(".lora_A.", ".lora_linear_layer.down.").replace(".lora_B.", ".lora_linear_layer.up.")
    return key.replace(".lora_A.", ".lora.down.").replace(".lora_B.", ".lora.up.")


def original_names(tensors: dict[str, torch.Tensor], unet: torch.nn.Module) -> dict[str, torch.Tensor]:
    """kohya's file with the UNet's layers named as in the original code.

    Without the upsampler of a level that has no attention: diffusers takes it for attention, which it is in SDXL.
    """
    tensors = {key: tensor for key, tensor in tensors.items() if "upsamplers" not in key}
    flat = {
        name.replace(".", "_"): other.replace(".", "_")
        for name, other in compvis_names(list(dict(unet.named_modules()))).items()
    }
    found = {}
    for key, tensor in convert_state_dict_to_kohya(tensors).items():
        layer, _, rest = key.removeprefix("lora_unet_").partition(".")
        found[f"lora_unet_{flat[layer]}.{rest}" if layer in flat else key] = tensor
    return found


STYLES: dict[str, Callable] = {
    "diffusers": lambda tensors, unet: tensors,
    "kohya": lambda tensors, unet: convert_state_dict_to_kohya(tensors),
    "kohya, other alphas": lambda tensors, unet: {
        key: 2 * tensor if key.endswith("alpha") else tensor
        for key, tensor in convert_state_dict_to_kohya(tensors).items()
    },
    "original": original_names,
    "old": lambda tensors, unet: {old_names(key): tensor for key, tensor in tensors.items()},
}


def write_lora(style: str, pipe: StableDiffusionPipeline, folder: Path, **metadata: dict) -> Path:
    """The pipeline's LoRA with one style of keys."""
    unet, text = map(get_peft_model_state_dict, (pipe.unet, pipe.text_encoder))
    if style == "diffusers":
        text = convert_state_dict_to_diffusers(text)
    pipe.save_lora_weights(folder, unet, text, **metadata)
    file = folder / "pytorch_lora_weights.safetensors"
    if style != "diffusers":
        tensors = STYLES[style](load_file(file), pipe.unet)
        save_file({key: tensor.clone().contiguous() for key, tensor in tensors.items()}, file)
    return file


def check_pipeline(file: Path, plain: StableDiffusionPipeline, scale: float = 0.7) -> None:
    """Merged here and by diffusers."""
    base, text = weights(plain.unet), weights(plain.text_encoder)
    ours = merge(base, (file, scale), text=text)
    plain.load_lora_weights(file.parent, weight_name=file.name, unet_config=plain.unet.config)
    plain.fuse_lora(lora_scale=scale)
    plain.unload_lora_weights()
    theirs = weights(plain.unet) | weights(plain.text_encoder)
    changed = sum(key.endswith(("down.weight", "lora_A.weight")) for key in load_file(file))
    check(ours, theirs, base | text, changed)
