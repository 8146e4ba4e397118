"""Refuses networks of other families by what they are, from their configs alone.

Most of them are UNets of Stable Diffusion's own class, so that a key or two tell them apart.
"""

from collections.abc import Mapping
from typing import Any

from memattn_jax.errors import InputError
from memattn_jax.text import printable

SUPPORTED = "expected a text-to-image model of Stable Diffusion 1.x or 2.x"
LATENTS = 4
CHANNELS = {  # of the latents and what is concatenated to them
    5: "a depth-to-image model: its UNet also takes a depth map",
    7: "an upscaler: its UNet also takes a picture of low resolution",
    8: "an image-conditioned model such as InstructPix2Pix: its UNet also takes a picture's latents",
    9: "an inpainting model: its UNet also takes a mask and the latents of a masked picture",
}
ADDED = {
    "text_time": "Stable Diffusion XL",
    "text": "DeepFloyd IF",
    "text_image": "Kandinsky 2.1",
    "image": "Kandinsky 2.2",
    "image_hint": "Kandinsky 2.2 with a hint",
}
TEXT_ENCODERS = {
    "t5": "T5, as in DeepFloyd IF, Stable Diffusion 3 and PixArt",
    "umt5": "UMT5",
    "clap": "CLAP, as in AudioLDM",
    "clap_text_model": "CLAP, as in AudioLDM",
    "xlm-roberta": "XLM-RoBERTa, as in AltDiffusion",
    "roberta": "RoBERTa, as in Japanese Stable Diffusion",
    "bert": "BERT",
    "clip_vision_model": "CLIP's image encoder, as in image variations",
}


def other_unet(config: Mapping[str, Any]) -> str | None:
    """What a UNet is that Stable Diffusion 1.x and 2.x do not have; None for one that they may have."""
    added = config.get("addition_embed_type")
    if added is not None:
        return f"{ADDED.get(str(added), 'another model')} (addition_embed_type={printable(repr(added), 40)})"
    if isinstance(config.get("cross_attention_dim"), list) or config.get("class_embed_type") == "simple_projection":
        return "AudioLDM, whose UNet makes spectrograms"
    if config.get("attention_type", "default") not in ("default", None):
        return f"GLIGEN (attention_type={printable(repr(config['attention_type']), 40)})"
    channels = config.get("in_channels", LATENTS)
    if type(channels) is int and channels in CHANNELS and config.get("out_channels", LATENTS) == LATENTS:
        return f"{CHANNELS[channels]} (in_channels={channels})"
    if config.get("time_cond_proj_dim") is not None:
        return "a latent consistency model: its UNet also takes the guidance scale (time_cond_proj_dim)"
    if config.get("num_class_embeds") is not None:
        return "a class-conditional model, as upscalers are (num_class_embeds)"
    if config.get("class_embed_type") is not None:
        return "an unCLIP or multi-view model: its UNet also takes another embedding (class_embed_type)"
    if config.get("dual_cross_attention"):
        return "Versatile Diffusion (dual_cross_attention)"
    return None


def refuse_other_unets(config: Mapping[str, Any], where: str) -> None:
    """Raises InputError for a UNet of another family; `where` names the config."""
    if (family := other_unet(config)) is not None:
        raise InputError(f"{where}: this is {family}; {SUPPORTED}")


def refuse_other_text_encoders(config: Mapping[str, Any], where: str) -> None:
    """Raises InputError for a text encoder that is not CLIP's; `where` names the config."""
    kind = config.get("model_type", "clip_text_model")
    if kind != "clip_text_model":
        known = TEXT_ENCODERS.get(str(kind), "of another model")
        raise InputError(
            f"{where}: model_type={printable(repr(kind), 40)} is not supported, it is {known}; {SUPPORTED}"
        )
