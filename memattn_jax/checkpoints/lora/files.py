"""Opens a file of LoRA, or a folder of PEFT's, and groups its tensors by layer; reads no weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from memattn_jax.checkpoints.json_file import read_json
from memattn_jax.checkpoints.lora.keys import parse_key
from memattn_jax.checkpoints.lora.kinds import LayerChange, form_of
from memattn_jax.checkpoints.lora.scaling import METADATA, Scales, check_config, part_configs
from memattn_jax.checkpoints.tensors import read_tensors
from memattn_jax.errors import LIMIT, InputError, listed
from memattn_jax.text import counted, printable

CONFIG = "adapter_config.json"
IN_FOLDER = (
    "adapter_model.safetensors",
    "adapter_model.bin",
    "pytorch_lora_weights.safetensors",
    "pytorch_lora_weights.bin",
)


class Place(NamedTuple):
    """A layer as a file names it; `part` is None where the file does not say."""

    part: str | None
    layer: str


def weights_of(path: Path) -> Path:
    """The file with the tensors: the path itself, or of a folder the one that PEFT or diffusers writes.

    Raises:
      FileNotFoundError: no such file, or a folder without one.
    """
    if not path.is_dir():
        return path
    for name in IN_FOLDER:
        if (path / name).is_file():
            return path / name
    raise FileNotFoundError(f"{path}: holds no LoRA (expected {IN_FOLDER[0]} or {IN_FOLDER[2]})")


def read_lora(path: Path) -> dict[Place, LayerChange]:
    """The changes in a file, layer by layer; the tensors are as stored.

    Raises:
      FileNotFoundError: no such file.
      InputError: not a LoRA, or one for another family of models; keys that are not understood, layers with half of
        their tensors, or a config that is not supported.
    """
    file = weights_of(path)
    tensors, metadata = read_tensors(file)
    scales = configured_scales(file, metadata)
    layers, problems = group(tensors, str(file))
    changes = {}
    for place, roles in layers.items():
        form = form_of(roles)
        if form is None:
            problems.append(f"{place.layer} has {', '.join(sorted(roles))} alone")
            continue
        scale = own_scale(roles, form.rank)
        if scale is None:
            problems.append(f"{place.layer} has an alpha that is no number")
            continue
        if place.part in scales and form.formula is not None and "weight" not in roles:
            scale = scales[place.part](place.layer)
        changes[place] = LayerChange({role: array for role, array in roles.items() if role != "alpha"}, scale)
    if problems:
        raise misfits(file, problems, len(layers))
    if not changes:
        raise InputError(f"{file}: not a LoRA, it has no tensors")
    return changes


def configured_scales(file: Path, metadata: Mapping[str, Any]) -> dict[str | None, Scales]:
    """The scales by part that a config of PEFT's gives, which is beside the file or in its metadata."""
    if file.name.startswith("adapter_model.") and (file.parent / CONFIG).is_file():
        config = read_json(file.parent / CONFIG)
        check_config(config, str(file.parent / CONFIG))
        return dict.fromkeys((None, "unet", "text_encoder"), Scales(config, str(file.parent / CONFIG)))
    configs = part_configs(metadata[METADATA], str(file)) if METADATA in metadata else {}
    return {part: Scales(config, str(file)) for part, config in configs.items()}


def group(tensors: Mapping[str, np.ndarray], where: str) -> tuple[dict[Place, dict[str, np.ndarray]], list[str]]:
    """The tensors by layer and role, and what is wrong with keys."""
    layers: dict[Place, dict[str, np.ndarray]] = {}
    problems = []
    for name, array in tensors.items():
        key = parse_key(name, where)
        if key is None:
            problems.append(f"unknown key {name}")
            continue
        roles = layers.setdefault(Place(key.part, key.layer), {})
        if key.role in roles:
            problems.append(f"{name} comes twice")
        elif array.dtype.kind not in ("fViu" if key.role == "alpha" else "fV"):  # V: bfloat16
            problems.append(f"stored as {array.dtype}: {name}")
        roles[key.role] = array
    return layers, problems


def own_scale(roles: Mapping[str, np.ndarray], rank: str | None) -> float | None:
    """alpha / rank; 1 without an alpha or a rank; None where alpha is no number."""
    if "alpha" not in roles or rank is None:
        return 1.0
    if roles["alpha"].size != 1 or not roles[rank].shape or not roles[rank].shape[0]:
        return None
    scale = float(roles["alpha"].reshape(())) / roles[rank].shape[0]
    return scale if np.isfinite(scale) else None


def misfits(file: Path, problems: list[str], layers: int) -> InputError:
    """The error that lists problems, as many as fit in a line."""
    text = f"{counted(len(problems), 'problem')} in {counted(layers, 'layer')}: "
    length = LIMIT - len(text)  # however long the path is
    shown = [printable(problem, length - len(", …")) for problem in problems[:LIMIT]]
    return InputError(f"{file}: {text}{listed(shown, length, shown[0])}")
