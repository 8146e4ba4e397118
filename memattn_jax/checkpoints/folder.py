"""Checks a diffusers folder of Stable Diffusion 1.x or 2.x without reading weights or importing JAX."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memattn_jax.errors import InputError, check_name
from memattn_jax.models.configs import UNetConfig, VAEConfig

PARTS = ("unet", "vae", "text_encoder")
MODEL_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object from a file; raises InputError if there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not text
        raise InputError(f"{path}: not a JSON file ({error})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: not a JSON object")
    return content


def check_folder(folder: Path) -> None:
    """Raises unless the folder is a Stable Diffusion 1.x or 2.x checkpoint with all its parts.

    Raises:
      FileNotFoundError: no such folder.
      InputError: another family of models, or a missing part.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no such model: {folder} (expected a diffusers folder with model_index.json)")
    index = folder / "model_index.json"
    if not index.is_file():
        raise InputError(f"{folder}: not a diffusers folder, it lacks model_index.json")
    family = read_json(index).get("_class_name")
    if family != MODEL_INDEX["_class_name"]:
        raise InputError(
            f"{index}: {family} is not supported; Stable Diffusion 1.x and 2.x (StableDiffusionPipeline) are"
        )
    needed = [*(f"{part}/config.json" for part in PARTS), "scheduler/scheduler_config.json", "tokenizer"]
    if missing := [name for name in needed if not (folder / name).exists()]:
        raise InputError(f"{folder}: lacks {', '.join(missing)}")


def cross_attention_sites(config: UNetConfig) -> tuple[str, ...]:
    """Paths of the cross-attention layers in forward order, as the model that is built from a config names them."""
    levels = range(len(config.block_out_channels))
    layers, cross_only = config.layers, config.cross_only
    blocks = [(kind, f"down_blocks.{i}", i, layers[i], cross_only[i]) for i, kind in enumerate(config.down_block_types)]
    blocks.append(("CrossAttn", "mid_block", levels[-1], 1, False))
    for position, (i, kind) in enumerate(zip(reversed(levels), config.up_block_types, strict=True)):
        blocks.append((kind, f"up_blocks.{position}", i, layers[i] + 1, cross_only[i]))
    return tuple(
        f"{path}.attentions.{attention}.transformer_blocks.{layer}.{name}"
        for kind, path, level, attentions, both in blocks
        if kind.startswith("CrossAttn")
        for attention in range(attentions)
        for layer in range(config.transformer_layers[level])
        for name in (("attn1", "attn2") if both else ("attn2",))
    )


@dataclass(frozen=True)
class Geometry:
    """The properties of a checkpoint that restrict options.

    Attributes:
      sites: its cross-attention layers.
      scale: pixels per latent, along each side.
      timesteps: number of training timesteps.
    """

    sites: tuple[str, ...]
    scale: int
    timesteps: int

    @classmethod
    def read(cls, folder: Path) -> "Geometry":
        """Reads the JSON files of a folder.

        Raises:
          FileNotFoundError: no such folder.
          InputError: not a checkpoint of Stable Diffusion 1.x or 2.x, or a config that is not supported.
        """
        check_folder(folder)
        unet, vae = (folder / part / "config.json" for part in ("unet", "vae"))
        scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
        try:
            sites = cross_attention_sites(UNetConfig.from_json(read_json(unet), str(unet)))
            scale = VAEConfig.from_json(read_json(vae), str(vae)).scale
            return cls(sites, scale, int(scheduler.get("num_train_timesteps", 1000)))
        except InputError:
            raise
        except (TypeError, ValueError, IndexError, ArithmeticError) as error:  # such as a list too short, or a null
            raise InputError(f"{folder}: cannot build a model from its configs ({error})") from None

    def check(
        self, *, steps: int | None, site: str | None, height: int | None = None, width: int | None = None
    ) -> None:
        """Raises InputError for an option that does not suit the checkpoint."""
        if steps is not None and steps > self.timesteps:
            raise InputError(f"--steps {steps}: at most {self.timesteps}, the number of training timesteps")
        if site is not None:
            check_name("cross-attention layer", site, self.sites, "--site")
        for name, pixels in (("height", height), ("width", width)):
            if pixels is not None and (pixels <= 0 or pixels % self.scale):
                raise InputError(f"--{name} {pixels}: must be a positive multiple of {self.scale} pixels")
