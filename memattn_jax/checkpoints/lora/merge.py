"""Finds the layers of a model that LoRA files change, and changes their weights."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from memattn_jax.checkpoints.checkpoint import Change, Part
from memattn_jax.checkpoints.lora.compvis import compvis_names
from memattn_jax.checkpoints.lora.files import Place, misfits, read_lora, weights_of
from memattn_jax.checkpoints.lora.keys import ONLY_SDXL
from memattn_jax.checkpoints.lora.kinds import LayerChange
from memattn_jax.errors import InputError

Shapes = Mapping[str, tuple[int, ...]]  # of a network's parameters, by PyTorch's names
TEXT_WIDTHS = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "SDXL"}
# diffusers' first text-encoder layers were named as the UNet's
OLD_TEXT = {"self_attn.q_proj": "self_attn.to_q", "self_attn.k_proj": "self_attn.to_k"}
OLD_TEXT |= {"self_attn.v_proj": "self_attn.to_v", "self_attn.out_proj": "self_attn.to_out.0"}


class Step(NamedTuple):
    """What one file does to a parameter, and with which strength."""

    path: Path
    change: LayerChange
    strength: float


def flat_name(path: str) -> str:
    """A layer's name as kohya writes it."""
    return path.replace(".", "_")


def layer_names(part: str, shapes: Shapes) -> dict[str, str]:
    """{every name of a layer, flat: its path in our network}."""
    paths = sorted({name.rpartition(".")[0] for name in shapes})
    names = {flat_name(path): path for path in paths}
    if part == "unet":
        names |= {flat_name(other): path for path, other in compvis_names(paths).items()}
    else:
        for new, old in OLD_TEXT.items():
            names |= {flat_name(path.replace(new, old)): path for path in paths if path.endswith(new)}
        names |= {name.removeprefix("text_model_"): path for name, path in names.items()}  # transformers 5
    return names


def find_layers(
    path: Path, changes: Mapping[Place, LayerChange], shapes: Mapping[str, Shapes]
) -> dict[str, dict[str, LayerChange]]:
    """The changes of one file by part and by the layer's path in our networks.

    Args:
      path: of the file, for errors.
      changes: what `read_lora` returns.
      shapes: of the parameters of "unet" and "text_encoder".

    Raises:
      InputError: layers that the model lacks, or that have other shapes; as many are listed as fit.
    """
    names = {part: layer_names(part, own) for part, own in shapes.items()}
    found: dict[str, dict[str, LayerChange]] = {part: {} for part in shapes}
    problems = []
    for place, change in changes.items():
        parts = [place.part] if place.part else list(shapes)
        part = next((part for part in parts if flat_name(place.layer) in names[part]), None)
        if part is None:
            problems.append(f"the model has no layer {place.layer}")
            continue
        layer = names[part][flat_name(place.layer)]
        own = {kind: shapes[part].get(f"{layer}.{kind}", ()) for kind in ("weight", "bias")}
        if layer in found[part]:
            problems.append(f"{place.layer} comes twice")
        elif problem := change.problem(own):
            problems.append(f"{place.layer} {problem}")
        found[part][layer] = change
    if problems:
        raise made_for(path, changes, shapes["unet"]) or misfits(weights_of(path), problems, len(changes))
    return found


def made_for(path: Path, changes: Mapping[Place, LayerChange], unet: Shapes) -> InputError | None:
    """The error for a file of another family of models, as its layers tell; None where they do not."""
    if any(ONLY_SDXL.search(place.layer) for place in changes):
        return InputError(f"{path}: was made for SDXL, which is not supported")
    own = next((shape[1] for name, shape in unet.items() if name.endswith("attn2.to_k.weight")), None)
    for place, change in changes.items():
        if flat_name(place.layer).endswith("attn2_to_k") and "down" in change.tensors:
            width = np.shape(change.tensors["down"])[-1]
            if width in TEXT_WIDTHS and width != own:
                return InputError(f"{path}: was made for {TEXT_WIDTHS[width]}: {width} text channels, not {own}")
    return None


def with_loras(parts: Mapping[str, Part], loras: Sequence[tuple[Path, float]]) -> dict[str, Part]:
    """A checkpoint's parts with the changes of these files, which are made in float32 and in this order at loading.

    Args:
      parts: with "unet" and "text_encoder".
      loras: files or folders, each with its strength.

    Raises:
      FileNotFoundError: no such file.
      InputError: a strength that is not finite; see also `read_lora` and `find_layers`.
    """
    shapes = {name: parameter_shapes(name, parts[name]) for name in ("unet", "text_encoder")}
    steps: dict[str, dict[str, list[Step]]] = {name: {} for name in shapes}
    for path, strength in loras:
        if not math.isfinite(strength):
            raise InputError(f"{path}: strength {strength} must be finite")
        for name, layers in find_layers(path, read_lora(path), shapes).items():
            for layer, change in layers.items():
                for parameter in change.parameters:
                    steps[name].setdefault(f"{layer}.{parameter}", []).append(Step(path, change, strength))
    changed = {name: replace(parts[name], change=change_by(own), orbax=None) for name, own in steps.items()}
    return {**parts, **changed}


def parameter_shapes(name: str, part: Part) -> dict[str, tuple[int, ...]]:
    """Of a network's parameters, by their names in this package."""
    outer = "text_model." if name == "text_encoder" else ""  # which transformers 5 leaves out
    return {outer + key.removeprefix(outer): tensor.shape for key, tensor in part.tensors().items()}


def change_by(steps: Mapping[str, Iterable[Step]]) -> Change:
    """Applies the steps of each parameter, one after the other.

    The function raises InputError where a finite parameter would not be finite any more.
    """

    def change(name: str, stored: np.ndarray) -> np.ndarray:
        for path, layer, strength in steps.get(name, ()):
            tensors = {role: array.astype(np.float32, copy=False) for role, array in layer.tensors.items()}
            before = stored.astype(np.float32, copy=False)
            with np.errstate(all="ignore"):  # what overflows is found below
                exact = LayerChange(tensors, layer.scale)
                stored = exact.apply(name.rpartition(".")[2], before, np.float32(strength))
                likely = np.isfinite(stored.sum())  # a sixth of the time that asking each number takes
            if not likely and not np.isfinite(stored).all() and np.isfinite(before).all():
                raise InputError(f"{path}: makes {name} of the model infinite or NaN")
        return stored

    return change
