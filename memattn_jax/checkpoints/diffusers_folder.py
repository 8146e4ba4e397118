"""One network of a diffusers folder, loaded and saved."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from safetensors.numpy import save_file

from memattn_jax.checkpoints.filling import build
from memattn_jax.checkpoints.folder import ORBAX, STEMS, open_part
from memattn_jax.checkpoints.names import leaves
from memattn_jax.models.clip_text import CLIPTextModel
from memattn_jax.models.unet import UNet2DConditionModel
from memattn_jax.models.vae import AutoencoderKL


def load_part(folder: Path, part: str, dtype: str, mesh: Mesh | None = None) -> Any:
    """One of the networks, its weights converted to `dtype`.

    Args:
      folder: the diffusers folder.
      part: "unet", "vae" or "text_encoder".
      dtype: "float32", "bfloat16" or "float16".
      mesh: devices to split the weights over, see `memattn_jax.sharding`.

    Raises:
      InputError: an unsupported config or dtype, or weights that do not fit.
    """
    return build({part: open_part(folder / part, part)}, dtype, mesh)[part]


def save_part(module: UNet2DConditionModel | AutoencoderKL | CLIPTextModel, folder: Path, part: str) -> None:
    """Writes one network so that PyTorch's `from_pretrained` reads the same bits."""
    stem = STEMS[part]
    (folder / part).mkdir(parents=True, exist_ok=True)
    config = module.config.to_json()
    (folder / part / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    tensors = {leaf.name: leaf.to_torch(jax.device_get(leaf.param[...])) for leaf in leaves(module)}
    partial_file = folder / part / f"{stem}.partial"
    save_file(tensors, partial_file, metadata={"format": "pt"})
    for old in (folder / part).glob(f"{stem}*.safetensors*"):  # shards of another save would be read instead
        old.unlink()
    shutil.rmtree(folder / part / ORBAX, ignore_errors=True)  # likewise
    partial_file.rename(folder / part / f"{stem}.safetensors")
