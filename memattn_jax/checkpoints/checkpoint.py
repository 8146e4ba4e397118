"""What a checkpoint holds, whatever container it came in, before any weights are read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from memattn_jax.models.configs import Config

PARTS = ("unet", "vae", "text_encoder")


@dataclass(frozen=True)
class Part:
    """One network.

    Attributes:
      where: names it in errors, a file or folder.
      config: its geometry.
      tensors: finds its tensors, {PyTorch's name: view of a mapped file}; raises InputError for damaged files.
    """

    where: str
    config: Config
    tensors: Callable[[], Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class Checkpoint:
    """A model's parts.

    Attributes:
      where: names it in errors.
      parts: "unet", "vae" and "text_encoder".
      scheduler_config: the content of scheduler_config.json.
      tokenizer: folder of the tokenizer; None is CLIP's own, which this package brings.
      pad: the padding token where the tokenizer is CLIP's own.
      entropy_site: the cross-attention layer that metric E is read at, None for the paper's.
    """

    where: str
    parts: Mapping[str, Part]
    scheduler_config: Mapping[str, Any]
    tokenizer: Path | None
    pad: str = "<|endoftext|>"
    entropy_site: str | None = None


@dataclass(frozen=True, kw_only=True)
class Source:
    """Which weights of a checkpoint to take, and what its file does not say.

    Attributes:
      vae: another autoencoder: a file, or a folder with a config.json.
      config: a diffusers folder, whose weights are not read, with the configs, scheduler and tokenizer of a single
        file.
      ema: whether to take the moving average of the UNet's weights, where a single file has both.
      prediction_type: "epsilon" or "v_prediction", which a single file may not say.
    """

    vae: Path | None = None
    config: Path | None = None
    ema: bool = False
    prediction_type: str | None = None
