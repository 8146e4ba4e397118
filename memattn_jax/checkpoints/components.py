"""Refuses pipelines of other families by the parts that they have and Stable Diffusion 1.x and 2.x do not.

A pipeline's name does not matter: image-to-image, ControlNet and latent consistency pipelines, Flax's and those without
a name have the same parts as a text-to-image one.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from memattn_jax.errors import InputError
from memattn_jax.models.families import SUPPORTED
from memattn_jax.text import printable

FAMILIES = {  # by a part of theirs, the most telling first
    "transformer": "a model with a transformer in place of the UNet, such as Stable Diffusion 3, Flux and PixArt",
    "text_encoder_2": "Stable Diffusion XL or another model with two text encoders",
    "prior": "a model with a prior, such as unCLIP, Kandinsky and Stable Cascade",
    "prior_prior": "a model with a prior, such as Kandinsky and Stable Cascade",
    "movq": "Kandinsky",
    "vqgan": "Stable Cascade",
    "vocoder": "AudioLDM or another model of sound",
    "bert": "the first latent diffusion model, with a text encoder of its own",
    "vqvae": "a latent diffusion model without text",
    "text_unet": "Versatile Diffusion",
    "image_unet": "Versatile Diffusion",
    "qformer": "BLIP-Diffusion",
    "vision_encoder": "Zero123++ or another model that draws from a picture",
    "vae_decoder": "an export to ONNX, whose weights are not read",
}


def components(index: Mapping[str, Any], folders: Collection[str]) -> set[str]:
    """The parts of a pipeline: those that model_index.json lists as present, or else the folders there are."""
    listed = {key for key, value in index.items() if isinstance(value, list) and value[:1] != [None]}
    return listed or set(folders)


def refuse_other_pipelines(folder: Path, index: Mapping[str, Any], folders: Collection[str]) -> None:
    """Raises InputError for a pipeline of another family.

    Args:
      folder: names it in the error.
      index: its model_index.json; empty where there is none.
      folders: names of the folders in it.
    """
    parts = components(index, folders)
    family = next((text for part, text in FAMILIES.items() if part in parts), None)
    if "image_encoder" in parts and "text_encoder" not in parts:
        family = "a model of image variations, which draws from a picture"
    if family is not None:
        name = index.get("_class_name")
        named = "" if name is None else f" ({printable(str(name), 60)})"
        raise InputError(f"{folder}: this is {family}{named}; {SUPPORTED}")
