"""Options that say which model to load, and the checks that run before JAX is imported and a model is loaded."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from memattn_jax import demo
from memattn_jax.checkpoints import hub
from memattn_jax.checkpoints.checkpoint import Source
from memattn_jax.checkpoints.geometry import Geometry
from memattn_jax.checkpoints.lora.files import read_lora
from memattn_jax.checkpoints.opening import open_checkpoint
from memattn_jax.checkpoints.textual_inversion import read_embedding
from memattn_jax.commands.options import BY_DEFAULT, one_of, texts
from memattn_jax.errors import InputError, check_name
from memattn_jax.prompts.record import valid_text
from memattn_jax.registries import DTYPES
from memattn_jax.sharding.mesh import mesh_sizes
from memattn_jax.text import printable


def repeated(metavar: str) -> Any:
    """For an option that may come several times."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="")


def file_and_value(text: str, option: str) -> tuple[Path, str | None]:
    """Splits FILE:VALUE at the last colon, unless there is a file of that whole name.

    Raises:
      InputError: no such file.
    """
    path, colon, value = text.rpartition(":")
    for file, rest in ((text, None), (path, value)):
        if file and Path(file).expanduser().exists():
            return Path(file).expanduser(), rest
    raise InputError(f"{option} {printable(path if colon else text, 80)}: no such file or folder")


def strength_of(text: str | None) -> float:
    """The strength of a LoRA; raises InputError unless it is a finite number."""
    try:
        strength = 1.0 if text is None else float(text)
    except ValueError:
        strength = math.nan
    if not math.isfinite(strength):
        raise InputError(f"--lora …:{printable(str(text), 40)}: the strength must be a number, such as 0.8")
    return strength


@dataclass(frozen=True, kw_only=True)
class CheckpointOptions:
    """Which model; see `memattn_jax.checkpoints.checkpoint.Source`."""

    model: Annotated[str | None, BY_DEFAULT] = None
    """Stable Diffusion 1.x or 2.x checkpoint: a diffusers folder; a single file (.safetensors, .ckpt); or
    hf://owner/name@revision/path, or just owner/name on the Hugging Face Hub. Default: the built-in demo model."""
    vae: Annotated[Path | None, BY_DEFAULT] = None
    """Autoencoder to use instead of the checkpoint's: a file, or a folder with a config.json."""
    config: Annotated[Path | None, BY_DEFAULT] = None
    """Diffusers folder with the configs, scheduler and tokenizer of a single file; its weights are not read. Default:
    they are derived from the file's tensors."""
    ema: bool = False
    """Take the moving average of the UNet's weights, where a single file has both."""
    prediction_type: Annotated[str | None, BY_DEFAULT, one_of("epsilon", "v_prediction")] = None
    """What the UNet predicts. Default: what the checkpoint says."""
    variant: Annotated[str | None, BY_DEFAULT] = None
    """Weights to take of a diffusers folder that has several, such as fp16 or non_ema. Default: the plain ones, else
    fp16, bf16 or non_ema."""
    lora: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, repeated("FILE[:STRENGTH]")] = ()
    """LoRA, LoHa, LoKr or DoRA file to merge into the model, and its strength, 1 by default; several, in the order
    given, each with an option of its own."""
    embedding: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, repeated("FILE[:TOKEN]")] = ()
    """Textual inversion file, and what stands for it in prompts. Default: the token that the file names, or else its
    name; several, each with an option of its own."""

    @property
    def given(self) -> dict[str, Any]:
        """The given ones of these options but the model's name."""
        names = ("vae", "config", "ema", "prediction_type", "variant", "lora", "embedding")
        return {name: value for name in names if (value := getattr(self, name))}

    @property
    def source(self) -> dict[str, Any]:
        """The same as arguments of `from_pretrained`.

        Raises:
          InputError: a file of --lora or --embedding that does not exist, or a strength that is no number.
        """
        arguments = self.given
        loras = [file_and_value(text, "--lora") for text in arguments.pop("lora", ())]
        embeddings = [file_and_value(text, "--embedding") for text in arguments.pop("embedding", ())]
        return arguments | {"loras": [(path, strength_of(text)) for path, text in loras], "embeddings": embeddings}

    @property
    def model_name(self) -> str:
        """The model's name with these options, as results record it."""
        values = {name: value if isinstance(value, tuple) else (value,) for name, value in self.given.items()}
        parts = [self.model or "built-in", *(f"{name}={one}" for name in values for one in values[name])]
        return valid_text(" ".join(parts))

    @property
    def built_in(self) -> bool:
        """Whether the model is the built-in one, unchanged."""
        return self.model is None and not self.lora and not self.embedding

    def check_checkpoint(self, steps: int | None = None, site: str | None = None, **pixels: int | None) -> None:
        """Raises InputError or FileNotFoundError for a model that cannot be loaded, or options that do not suit it.

        A model on the Hugging Face Hub is checked after its download.
        """
        if self.prediction_type is not None:
            check_name("prediction type", self.prediction_type, ("epsilon", "v_prediction"), "--prediction-type")
        model, source = self.model or demo.MODEL, Source(**self.source)
        for path, token in source.embeddings:
            read_embedding(path, token)
        for path, _ in source.loras:
            read_lora(path)
        if hub.parse(model) is None:
            checkpoint = open_checkpoint(hub.locate(model, source), source)
            Geometry.of(checkpoint).check(steps=steps, site=site, **pixels)

    def check_schedule(self, scheduler: str, steps: int) -> None:
        """Raises InputError where the checkpoint's settings do not suit the scheduler.

        Imports JAX, and reads no weights: it is for `main`, before the model is loaded.
        """
        from memattn_jax.schedulers import as_pipeline, make_schedule

        source = Source(**self.source)
        checkpoint = open_checkpoint(hub.locate(self.model or demo.MODEL, source), source)
        make_schedule(as_pipeline(checkpoint.scheduler_config), scheduler, steps)


@dataclass(frozen=True, kw_only=True)
class ModelOptions(CheckpointOptions):
    """Which model, on which devices."""

    column: str = "prompt"
    """Name of the prompt column (.csv, .tsv, .parquet) or key (.jsonl, .json); a.b is field b of column a."""
    dtype: Annotated[str | None, BY_DEFAULT, one_of(*DTYPES)] = None
    """Data type of weights and computation. Default: bfloat16 on GPUs and TPUs; float32 on CPUs and for the built-in
    model."""
    mesh: Annotated[str | None, BY_DEFAULT] = None
    """Device mesh, for example data=4,model=2. Default: all devices on data."""
    overwrite: bool = False
    """Replace existing results in the output folder."""

    @property
    def model_dtype(self) -> str | None:
        """`dtype`, else float32 for the built-in model, as its thresholds; None depends on the device."""
        return self.dtype or ("float32" if self.model is None else None)

    def check_model(self, steps: int | None, site: str | None = None, **pixels: int | None) -> None:
        """Raises InputError or FileNotFoundError, see `check_checkpoint`."""
        texts(self, "column")
        if self.dtype is not None:
            check_name("dtype", self.dtype, DTYPES, "--dtype")
        if self.mesh is not None:
            mesh_sizes(self.mesh)
        self.check_checkpoint(steps, site, **pixels)
