"""A diffusers folder of Stable Diffusion 1.x or 2.x: its configs, and where the weights of its parts are.

model_index.json
unet/  vae/  text_encoder/     config.json and weights, one file or shards with an index
tokenizer/  scheduler/
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from memattn_jax.checkpoints.checkpoint import PARTS, Checkpoint, Part
from memattn_jax.checkpoints.tensors import read_tensors
from memattn_jax.errors import InputError
from memattn_jax.models.configs import CLIPTextConfig, Config, UNetConfig, VAEConfig

OWN = "memattn_jax.json"  # what detectors need to know of a model and diffusers does not
STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
CONFIGS: dict[str, type[Config]] = {"unet": UNetConfig, "vae": VAEConfig, "text_encoder": CLIPTextConfig}
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


def weight_files(folder: Path, stem: str) -> list[Path]:
    """The safetensors files of one part: a single file, shards named by an index, or the fp16 variant of either."""
    for variant in ("", ".fp16"):
        index = folder / f"{stem}.safetensors.index{variant}.json"
        if index.is_file():
            shards = sorted(set(read_json(index).get("weight_map", {}).values()))
            if not shards:
                raise InputError(f"{index}: lists no shards")
            return [folder / name for name in shards]
        single = folder / f"{stem}{variant}.safetensors"
        if single.is_file():
            return [single]
    hint = ""
    if any(folder.glob("*.bin")):
        hint = "; its .bin files are pickles: save the model with safe_serialization=True"
    raise InputError(f"{folder}: lacks {stem}.safetensors{hint}")


def part_tensors(folder: Path, stem: str) -> dict[str, np.ndarray]:
    """The tensors of one part; raises InputError if a file is missing or damaged."""
    tensors: dict[str, np.ndarray] = {}
    for path in weight_files(folder, stem):
        try:
            tensors |= read_tensors(path).tensors
        except FileNotFoundError:
            raise InputError(f"{path}: missing, although the index lists it") from None
    return tensors


def open_part(folder: Path, name: str) -> Part:
    """One part, in a folder of its own.

    Args:
      folder: with config.json and weights.
      name: "unet", "vae" or "text_encoder".

    Raises:
      InputError: a config that is damaged, or of a network that is not supported.
    """
    path = folder / "config.json"
    stored = read_json(path)
    try:
        config = CONFIGS[name].from_json(stored, where=str(path))
    except InputError:
        raise
    except (TypeError, ValueError, IndexError, ArithmeticError) as error:  # such as a list too short, or a null
        raise InputError(f"{path}: cannot build a model from this config ({str(error).splitlines()[0]})") from None
    return Part(str(folder), config, partial(part_tensors, folder, STEMS[name]))


def open_folder(folder: Path) -> Checkpoint:
    """Reads the configs of a folder.

    Raises:
      FileNotFoundError: no such folder.
      InputError: another family of models, a missing part, or a config that is not supported.
    """
    check_folder(folder)
    own = read_json(folder / OWN) if (folder / OWN).is_file() else {}
    return Checkpoint(
        where=str(folder),
        parts={name: open_part(folder / name, name) for name in PARTS},
        scheduler_config=read_json(folder / "scheduler" / "scheduler_config.json"),
        tokenizer=folder / "tokenizer",
        entropy_site=own.get("entropy_site"),
    )
