"""Options that several commands share."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from memattn_jax.errors import InputError


@dataclass(frozen=True, kw_only=True)
class PromptOptions:
    """Where prompts come from."""

    prompt: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[PROMPT …]")] = ()
    """Prompts, one an argument."""
    prompts: str | None = None
    """Prompt file instead: .txt (a line each), .jsonl, .csv, .parquet, these with .gz, a folder of them, a gs:// or
    s3:// URL, or - for standard input."""


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model, on which devices."""

    column: str = "prompt"
    """Column of a .csv or .parquet, or key of a .jsonl, that holds the prompt."""
    model: str | None = None
    """Checkpoint of Stable Diffusion 1.x or 2.x: a diffusers folder with safetensors, or owner/name on the hub; by
    default the built-in demo model."""
    dtype: str | None = None
    """float32, bfloat16 or float16; by default bfloat16 on GPUs and TPUs, and float32 on CPUs and for the built-in
    model."""
    mesh: str | None = None
    """Devices, as data=4,model=2; by default all on data."""
    overwrite: bool = False
    """Start anew in an output folder that holds results."""

    @property
    def model_dtype(self) -> str | None:
        """`dtype`, or float32 for the built-in model, whose thresholds were fitted in it; None is by device."""
        return self.dtype or ("float32" if self.model is None else None)


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a run over many prompts is spread and written."""

    out: str = "out"
    """Output folder; also a gs:// or s3:// URL."""
    shard_rows: int = 2048
    """Rows of a Parquet file in it."""
    distributed: bool = False
    """This is one of several processes with the same command line, which find each other from the metadata of a TPU
    slice, Slurm or Open MPI; each works on its own prompts."""
    num_processes: int | None = None
    """How many processes there are, elsewhere."""
    process_id: int | None = None
    """Which one this is, from 0."""
    coordinator: str | None = None
    """Where they meet at the start, host:port of the first one; left out, they need not meet."""

    def check(self) -> None:
        """Raises InputError for a number out of range."""
        if self.shard_rows < 1:
            raise InputError(f"--shard-rows {self.shard_rows}: at least 1 is needed")
