"""A diffusers folder, from a checkpoint of any container; its weights in safetensors or, for JAX alone, in Orbax."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memattn_jax.checkpoints.checkpoint import Checkpoint
from memattn_jax.checkpoints.folder import MODEL_INDEX, ORBAX, OWN, STEMS
from memattn_jax.checkpoints.orbax_tensors import write_tensors_of
from memattn_jax.checkpoints.writing.parts import Tensors
from memattn_jax.checkpoints.writing.safetensors_writer import write_safetensors


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON object as diffusers does, and the folders on the way."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_settings(folder: Path, scheduler_config: Mapping[str, Any], entropy_site: str | None) -> None:
    """Writes all of a folder that belongs to none of its networks, but for the tokenizer.

    Args:
      folder: the model's.
      scheduler_config: content of scheduler_config.json; a class of Flax, which diffusers no longer has, is written
        under the name of PyTorch's.
      entropy_site: see `Checkpoint`.
    """
    class_name = str(scheduler_config.get("_class_name", "DDIMScheduler")).removeprefix("Flax")
    write_json(folder / "scheduler" / "scheduler_config.json", {**scheduler_config, "_class_name": class_name})
    write_json(folder / "model_index.json", MODEL_INDEX | {"scheduler": ["diffusers", class_name]})
    (folder / OWN).unlink(missing_ok=True)  # of another model that was here
    if entropy_site is not None:
        write_json(folder / OWN, {"entropy_site": entropy_site})


def write_folder(folder: Path, checkpoint: Checkpoint, tensors: Mapping[str, Tensors], *, orbax: bool = False) -> None:
    """Writes all but the tokenizer.

    Args:
      folder: the model's; made where there is none.
      checkpoint: the configs.
      tensors: of each part, under PyTorch's names.
      orbax: whether weights are written in Orbax, which diffusers does not read.
    """
    for name, part in checkpoint.parts.items():
        write_json(folder / name / "config.json", part.config.to_json())
        if orbax:
            write_tensors_of(part, folder / name / ORBAX, tensors[name])
        else:
            write_safetensors(folder / name / f"{STEMS[name]}.safetensors", tensors[name], {"format": "pt"})
    write_settings(folder, checkpoint.scheduler_config, checkpoint.entropy_site)
