"""A diffusers folder of Stable Diffusion 1.x or 2.x: its configs, and where the weights of its parts are.

model_index.json
unet/  vae/  text_encoder/     config.json and weights, one file or shards with an index
tokenizer/  scheduler/
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from memattn_jax.checkpoints.checkpoint import PARTS, Checkpoint, Part
from memattn_jax.checkpoints.components import refuse_other_pipelines
from memattn_jax.checkpoints.json_file import read_json
from memattn_jax.checkpoints.links import refuse_links_outside
from memattn_jax.checkpoints.tensors import read_tensors
from memattn_jax.checkpoints.tokenizer_files import tokenizer_files
from memattn_jax.checkpoints.weight_names import NAMES, Weights, choose_weights, variants
from memattn_jax.errors import InputError
from memattn_jax.models.config import Config
from memattn_jax.models.configs import CLIPTextConfig, UNetConfig, VAEConfig
from memattn_jax.text import printable

OWN = "memattn_jax.json"  # what detectors need to know of a model and diffusers does not
ORBAX = "orbax"  # folder of a part, in place of its files of weights
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


def read_files(folder: Path) -> Iterator[Path]:
    """The files in a folder that loading may read."""
    yield from folder.glob("*.json")
    for name in (*PARTS, "scheduler", "tokenizer"):
        yield folder / name
        yield from (folder / name).rglob("*")


def check_folder(folder: Path) -> None:
    """Raises unless the folder is a Stable Diffusion 1.x or 2.x checkpoint with all its parts.

    Raises:
      FileNotFoundError: no such folder.
      InputError: another family of models, a missing part, or a link to somewhere else.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no such model: {folder} (expected a diffusers folder, or a single file)")
    refuse_links_outside(folder, read_files(folder))
    path = folder / "model_index.json"
    index = read_json(path) if path.is_file() else {}
    refuse_other_pipelines(folder, index, [path.name for path in folder.iterdir() if path.is_dir()])
    needed = [*(f"{part}/config.json" for part in PARTS), "scheduler/scheduler_config.json", "tokenizer"]
    if missing := [name for name in needed if not (folder / name).exists()]:
        if len(missing) == len(needed):
            raise InputError(f"{folder}: not a diffusers folder, it has neither model_index.json nor unet/config.json")
        raise InputError(f"{folder}: lacks {', '.join(missing)}")


def names_in(folder: Path) -> list[str]:
    """Names of the files in a folder."""
    return [path.name for path in folder.iterdir()]


def no_weights(folder: Path) -> InputError:
    """What to say of a part without weights."""
    names = names_in(folder)
    if others := variants(names):
        return InputError(f"{folder}: has only the variants {', '.join(others)}; choose one with --variant")
    flax = "; its weights of Flax (.msgpack) are not read" if any(n.endswith(".msgpack") for n in names) else ""
    return InputError(f"{folder}: lacks weights, such as {NAMES[0]}.safetensors or .bin{flax}")


def shards(folder: Path, weights: Weights) -> list[Path]:
    """The files of one part's weights; raises InputError for an index that lists none, or files of other folders."""
    if weights.index is None:
        return [folder / name for name in weights.files]
    index = folder / weights.index
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise InputError(f"{index}: lists no shards")
    names = sorted({str(name) for name in listed.values()})
    for name in names:
        if name in ("", ".", "..") or len(name) > 255 or "/" in name or "\\" in name or not name.isprintable():
            raise InputError(f"{index}: lists {printable(name, 60)!r}, which is not the name of a file in its folder")
    return [folder / name for name in names]


def part_tensors(folder: Path, weights: Weights | None) -> dict[str, np.ndarray]:
    """The tensors of one part; raises InputError if a file is missing or damaged, or two have the same tensor."""
    if weights is None:
        raise no_weights(folder)
    tensors: dict[str, np.ndarray] = {}
    for path in shards(folder, weights):
        try:
            more = read_tensors(path).tensors
        except FileNotFoundError:
            raise InputError(f"{path}: missing, although the index lists it") from None
        if both := tensors.keys() & more.keys():
            raise InputError(f"{path}: has {printable(min(both), 80)}, as another shard has")
        tensors |= more
    return tensors


def orbax_tensors(folder: Path, config: Config) -> dict[str, np.ndarray]:
    """The tensors of one part, whose weights are in Orbax; raises InputError for a damaged checkpoint."""
    from memattn_jax.checkpoints.orbax_tensors import read_tensors_of

    return read_tensors_of(config, folder / ORBAX)


def open_part(folder: Path, name: str, variant: str | None = None) -> Part:
    """One part, in a folder of its own.

    Args:
      folder: with config.json and weights.
      name: "unet", "vae" or "text_encoder".
      variant: of the weights, such as "fp16"; see `choose_weights`.

    Raises:
      InputError: a config that is damaged, or of a network that is not supported.
    """
    path = folder / "config.json"
    config = CONFIGS[name].from_json(read_json(path), where=str(path))
    if ORBAX in names_in(folder):
        return Part(str(folder), config, partial(orbax_tensors, folder, config), orbax=folder / ORBAX)
    weights = choose_weights(names_in(folder), variant)
    return Part(str(folder), config, partial(part_tensors, folder, weights), weights.variant if weights else "")


def open_folder(folder: Path, variant: str | None = None) -> Checkpoint:
    """Reads the configs of a folder.

    Args:
      folder: the diffusers folder.
      variant: of the weights, such as "fp16"; see `weight_names`.

    Raises:
      FileNotFoundError: no such folder.
      InputError: another family of models, a missing part, a config that is not supported, or no such variant.
    """
    check_folder(folder)
    tokenizer_files(folder / "tokenizer")
    own = read_json(folder / OWN) if (folder / OWN).is_file() else {}
    parts = {name: open_part(folder / name, name, variant) for name in PARTS}
    if variant is not None and all(part.variant != variant for part in parts.values()):
        there = sorted({part.variant or "plain ones" for part in parts.values()})
        raise InputError(f"{folder}: has no {printable(variant, 40)} weights, only {', '.join(there)}")
    return Checkpoint(
        where=str(folder),
        parts=parts,
        scheduler_config=read_json(folder / "scheduler" / "scheduler_config.json"),
        tokenizer=folder / "tokenizer",
        entropy_site=own.get("entropy_site"),
    )
