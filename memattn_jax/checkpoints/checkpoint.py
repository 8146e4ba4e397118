"""What a checkpoint holds, whatever container it came in, before any weights are read."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from memattn_jax.errors import InputError
from memattn_jax.models.config import Config

Change = Callable[[str, np.ndarray], np.ndarray]  # a parameter's name and stored tensor, PyTorch's, to another tensor
PARTS = ("unet", "vae", "text_encoder")


@dataclass(frozen=True)
class Part:
    """One network.

    Attributes:
      where: names it in errors, a file or folder.
      config: its geometry.
      tensors: finds its tensors, {PyTorch's name: view of a mapped file}; raises InputError for damaged files.
      variant: of the weights, where there are several: "fp16", "bf16", "non_ema"; empty for the plain ones.
      change: what is loaded in place of a stored tensor, as LoRA needs it; None is the tensor itself.
      orbax: folder that holds the same in Orbax, to be restored instead; None where there is none, or it was changed.
    """

    where: str
    config: Config
    tensors: Callable[[], Mapping[str, np.ndarray]]
    variant: str = ""
    change: Change | None = None
    orbax: Path | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A model's parts.

    Attributes:
      where: names it in errors.
      parts: "unet", "vae" and "text_encoder".
      scheduler_config: the content of scheduler_config.json.
      tokenizer: folder of the tokenizer; None is CLIP's own, which this package brings.
      pad: the padding token where the tokenizer is CLIP's own.
      length: tokens that it pads prompts to, likewise.
      entropy_site: the cross-attention layer that metric E is read at, None for the paper's.
    """

    where: str
    parts: Mapping[str, Part]
    scheduler_config: Mapping[str, Any]
    tokenizer: Path | None
    pad: str = "<|endoftext|>"
    length: int = 77
    entropy_site: str | None = None


@dataclass(frozen=True, kw_only=True)
class Source:
    """Which weights of a checkpoint to take, where it lies, and what its file does not say.

    Attributes:
      vae: another autoencoder: a file, or a folder with a config.json.
      config: a diffusers folder, whose weights are not read, with the configs, scheduler and tokenizer of a single
        file.
      ema: whether to take the moving average of the UNet's weights, where a single file has both.
      prediction_type: "epsilon" or "v_prediction", which a single file may not say.
      variant: the weights to take of a folder that has several, such as "fp16" or "non_ema"; parts that lack it, and by
        default all, take the plain ones or, where there are none, fp16, bf16 or non_ema.
      subfolder: of the model's folder or repository, where the checkpoint is in one.
      revision: branch, tag or commit of a repository on the Hugging Face Hub.
      token: for a repository that is not public; by default that of `HF_TOKEN` or of the client's login.
      loras: files or folders whose changes to the weights are merged, each with its strength, a number, or without for
        1, as pairs or {path: strength}; or one file or folder.
      embeddings: textual inversion files, each with its token, or without for the one that the file or its name says,
        as pairs or {path: token}; or one file.

    Raises:
      InputError: `loras` or `embeddings` has something else than files and pairs.
    """

    vae: Path | None = None
    config: Path | None = None
    ema: bool = False
    prediction_type: str | None = None
    variant: str | None = None
    subfolder: str = ""
    revision: str | None = None
    token: str | None = field(default=None, repr=False)
    loras: Sequence[Any] = ()
    embeddings: Sequence[Any] = ()

    def __post_init__(self) -> None:
        lora, embedding = ("style.safetensors", 0.8), ("cat.safetensors", "<cat>")
        for name, default, kind, example in (("loras", 1.0, Real, lora), ("embeddings", None, str, embedding)):
            wrong = f"{name}: expected files, or pairs such as [{example}]"
            object.__setattr__(self, name, pairs(getattr(self, name), default, kind, wrong))


def pairs(given: Any, default: Any, kind: type, wrong: str) -> tuple[tuple[Path, Any], ...]:
    """Paths with their values, from one path, from paths and such pairs, or from {path: value}.

    Args:
      given: by the caller.
      default: value of a path alone.
      kind: of the other values.
      wrong: what an error says.

    Raises:
      InputError: `wrong`, for anything else.
    """
    found: list[tuple[Path, Any]] = []
    several = given.items() if isinstance(given, Mapping) else [given] if isinstance(given, str | Path) else given
    if not isinstance(several, Iterable):
        raise InputError(wrong)
    for one in several:
        match one:
            case str() | Path():
                found.append((Path(one).expanduser(), default))
            case [str() | Path() as path, value] if value is default or isinstance(value, kind):
                found.append((Path(path).expanduser(), value))
            case _:
                raise InputError(wrong)
    return tuple(found)
