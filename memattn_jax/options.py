"""Options that several commands share."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True, kw_only=True)
class PromptOptions:
    """Where prompts come from."""

    prompt: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[PROMPT …]")] = ()
    """Prompts, one an argument."""
    prompts: str | None = None
    """Prompt file instead: .txt (a line each), .jsonl, .csv, or - for standard input."""


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model, and where results go."""

    column: str = "prompt"
    """Column of a .csv, or key of a .jsonl, that holds the prompt."""
    model: str | None = None
    """Checkpoint of Stable Diffusion 1.x or 2.x: a diffusers folder with safetensors, or owner/name on the hub; by
    default the built-in demo model."""
    dtype: str = "float32"
    """float32, bfloat16 or float16."""
    out: Path = Path("out")
    """Output folder."""
    overwrite: bool = False
    """Replace the results that the output folder holds."""
