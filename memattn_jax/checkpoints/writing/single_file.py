"""A single file in the layout of CompVis and Stability AI, from a checkpoint of any container."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from memattn_jax.checkpoints.checkpoint import Checkpoint
from memattn_jax.checkpoints.single_file import family
from memattn_jax.checkpoints.single_file.opening import CONFIGS_KEY
from memattn_jax.checkpoints.single_file.original import original_openclip, original_unet, original_vae
from memattn_jax.checkpoints.writing.parts import Tensors
from memattn_jax.checkpoints.writing.safetensors_writer import Written, write_safetensors
from memattn_jax.models.configs import CLIPTextConfig, UNetConfig, VAEConfig, per_block


def write_single_file(path: Path, checkpoint: Checkpoint, tensors: dict[str, Tensors]) -> None:
    """Writes all parts, their configs and the scheduler's; of the tokenizer only the padding token and the length.

    Args:
      path: file to write.
      checkpoint: the configs, the padding token and the tokenizer's length.
      tensors: of each part, under PyTorch's names.
    """
    unet, vae, text = (checkpoint.parts[name].config for name in ("unet", "vae", "text_encoder"))
    assert isinstance(unet, UNetConfig)
    assert isinstance(vae, VAEConfig)
    assert isinstance(text, CLIPTextConfig)
    openclip = text.hidden_act == "gelu"
    parts = {
        family.UNET: {original_unet(name, unet): tensor for name, tensor in tensors["unet"].items()},
        family.VAE: {original_vae(name, vae): as_convolution(name, tensor) for name, tensor in tensors["vae"].items()},
    }
    if openclip:
        parts[family.OPENCLIP] = openclip_tensors(tensors["text_encoder"], text.num_hidden_layers)
    else:
        parts[family.CLIP] = tensors["text_encoder"]
    together = {prefix + name: tensor for prefix, part in parts.items() for name, tensor in part.items()}
    together |= markers(checkpoint, openclip=openclip)
    write_safetensors(path, together, metadata(checkpoint, openclip=openclip))


def markers(checkpoint: Checkpoint, *, openclip: bool) -> Tensors:
    """Empty tensors for what a Stable Diffusion file is not expected to have: see `family.VELOCITY`.

    Stable Diffusion 2 predicts v without one.
    """
    settings = checkpoint.scheduler_config
    found = {
        family.VELOCITY: settings.get("prediction_type") == "v_prediction" and not openclip,
        family.RESCALED: bool(settings.get("rescale_betas_zero_snr")),
    }
    empty = np.zeros(0, np.float32)
    return {name: Written(empty.shape, empty.dtype, lambda: empty) for name, there in found.items() if there}


def as_convolution(name: str, tensor: Written) -> Written:
    """The weights of the autoencoder's attention, [out, in], as [out, in, 1, 1]; other tensors as they are."""
    if "attentions" not in name or len(tensor.shape) != 2:
        return tensor
    shape = (*tensor.shape, 1, 1)
    return replaced(tensor, shape, lambda: tensor.make().reshape(shape))


def replaced(tensor: Written, shape: tuple[int, ...], make: Callable[[], np.ndarray]) -> Written:
    """A tensor of the same dtype, made otherwise."""
    return Written(shape, tensor.dtype, make)


def openclip_tensors(tensors: Tensors, layers: int) -> Tensors:
    """OpenCLIP's text tower: queries, keys and values are one matrix, and a last layer, of zeros, is not used."""
    found: Tensors = {}
    for name, tensor in tensors.items():
        if "_proj." not in name or "out_proj" in name:
            found[original_openclip(name)] = tensor
        elif ".q_proj." in name:
            path, _, leaf = name.partition(".q_proj.")
            three = [tensors[f"{path}.{projection}_proj.{leaf}"] for projection in "qkv"]
            block = original_openclip(f"{path}.in_proj.{leaf}").removesuffix(f"self_attn.in_proj.{leaf}")
            shape = (3 * tensor.shape[0], *tensor.shape[1:])
            found[f"{block}attn.in_proj_{leaf}"] = replaced(tensor, shape, joined(three))
    last = f"transformer.resblocks.{layers - 1}."
    for name, tensor in [item for item in found.items() if item[0].startswith(last)]:
        found[name.replace(last, f"transformer.resblocks.{layers}.")] = replaced(tensor, tensor.shape, zeros(tensor))
    return found


def joined(tensors: list[Written]) -> Callable[[], np.ndarray]:
    """Makes one array of several, along their first axis."""
    return lambda: np.concatenate([tensor.make() for tensor in tensors])


def zeros(tensor: Written) -> Callable[[], np.ndarray]:
    """Makes an array of zeros in the tensor's place."""
    return lambda: np.zeros(tensor.shape, tensor.dtype)


def metadata(checkpoint: Checkpoint, *, openclip: bool) -> dict[str, str]:
    """What other programs read of a model (Stability-AI/ModelSpec), and all configs for this package."""
    unet = checkpoint.parts["unet"].config
    assert isinstance(unet, UNetConfig)
    velocity = checkpoint.scheduler_config.get("prediction_type") == "v_prediction"
    kind = f"v2-{'768-v' if velocity else '512'}" if openclip else "v1"
    found = {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"stable-diffusion-{kind}",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.prediction_type": "v" if velocity else "epsilon",
    }
    if unet.sample_size is not None:
        height, width = per_block(unet.sample_size, 2)
        found["modelspec.resolution"] = f"{8 * width}x{8 * height}"
    configs: dict[str, object] = {name: part.config.to_json() for name, part in checkpoint.parts.items()}
    configs |= {"scheduler": dict(checkpoint.scheduler_config), "entropy_site": checkpoint.entropy_site}
    configs |= {"pad": checkpoint.pad, "length": checkpoint.length}
    return found | {CONFIGS_KEY: json.dumps(configs)}
