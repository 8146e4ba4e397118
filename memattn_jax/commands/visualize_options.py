"""Options of `memattn visualize`, and the checks that run before a model is loaded."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from memattn_jax import demo
from memattn_jax.commands.model_options import ModelOptions
from memattn_jax.commands.options import (
    BY_DEFAULT,
    at_least,
    files,
    finite,
    local_out,
    names_of,
    one_of,
    seeds,
    some_of,
)
from memattn_jax.errors import InputError, check_name
from memattn_jax.prompts import as_text, read_prompts
from memattn_jax.registries import SCHEDULERS
from memattn_jax.text import printable

FIGURES = ("heatmaps", "tokens", "entropy", "separation", "heads", "copy")
FORMATS = ("png", "svg")
Groups = tuple[list[str], list[str]] | None  # memorized and clean prompts


@dataclass(frozen=True, kw_only=True)
class Options(ModelOptions):
    """Draw where the tokens of a prompt look, and how attention differs between memorized and clean prompts."""

    prompt: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[PROMPT …]", help_behavior_hint="")
    ] = ()
    """Prompts, each quoted. Default: a memorized and a clean prompt of the built-in model."""
    prompts: Annotated[str | None, BY_DEFAULT] = None
    """Read prompts from a file instead, in any format that generate reads."""
    figures: Annotated[
        str,
        some_of(
            "Figures to draw, separated by commas. heatmaps: where each token looks. tokens: each token's share over "
            "the steps. entropy: over the steps. separation: of memorized and clean prompts, by layer and step. heads: "
            "heatmaps of each head of a layer. copy: where in the picture the copy is",
            FIGURES,
        ),
    ] = "all"
    format: Annotated[str, some_of("File formats, separated by commas", FORMATS)] = "png"
    tokens: Annotated[str | None, BY_DEFAULT] = None
    """Tokens to draw, separated by commas: words of the prompt; places, from 0 for the begin token; begin, words, end,
    padding or summary (end and padding). Default: all, the padding together."""
    site: Annotated[str | None, BY_DEFAULT] = None
    """Cross-attention layer of heatmaps and heads. Default: for heatmaps the mean of all, for heads the one that
    metric E reads."""
    head: Annotated[int | None, BY_DEFAULT] = None
    """Attention head of --site, from 0, for heatmaps. Default: the mean over heads."""
    over_steps: Annotated[str | None, BY_DEFAULT] = None
    """Sampling steps that heatmaps and heads average over, as FIRST:STOP, counted from 0, or from the end if negative;
    40:50 and -10: are the last ten of 50. Default: all."""
    memorized: Annotated[str | None, BY_DEFAULT] = None
    """File of memorized prompts, for the entropy's bands and separation. Default: those of the built-in model, if no
    prompts are given."""
    clean: Annotated[str | None, BY_DEFAULT] = None
    """File of prompts that are not memorized, likewise."""
    steps: int = 50
    """Number of sampling steps."""
    guidance_scale: float = 7.5
    """Classifier-free guidance scale; 1 or less turns guidance off."""
    scheduler: Annotated[str, one_of(*SCHEDULERS)] = "ddim"
    """Sampling scheduler; the score map of the figure copy always uses ddim."""
    seed: int = 0
    """Random seed of each prompt's initial noise."""
    batch_size: int = 4
    """Number of images sampled at once."""
    height: Annotated[int | None, BY_DEFAULT] = None
    """Image height in pixels. Default: the size that the model was trained on."""
    width: Annotated[int | None, BY_DEFAULT] = None
    """Image width in pixels. Default: the size that the model was trained on."""
    out: Path = Path("out/visualize")
    """Output folder."""

    def check(self) -> None:
        """Raises InputError or OSError for invalid options, without importing JAX."""
        if self.prompts is not None and self.prompt:
            raise InputError("--prompts: give prompts either as arguments or in a file, not both")
        if not (self.built_in or self.prompt or self.prompts is not None):
            raise InputError('no prompts: give them as arguments ("a prompt" "another") or with --prompts FILE')
        chosen = names_of(self.figures, FIGURES, "--figures", "figure")
        names_of(self.format, FORMATS, "--format", "format")
        if self.wanted == []:
            raise InputError(f"--tokens {printable(self.tokens or '', 40)}: names no token")
        at_least(self, 1, "steps", "batch_size")
        at_least(self, 0, "head")
        finite(self, "guidance_scale")
        seeds(self.seed, 1)
        check_name("scheduler", self.scheduler, SCHEDULERS, "--scheduler")
        files(self, "prompts", "memorized", "clean")
        local_out(self)
        if (self.memorized is None) != (self.clean is None):
            raise InputError(f"--{'memorized' if self.memorized is None else 'clean'} FILE is required too")
        if "separation" in chosen and self.figures != "all" and not (self.memorized or self.built_in):
            raise InputError("--figures separation needs --memorized FILE and --clean FILE")
        if self.head is not None and self.site is None:
            raise InputError("--head needs --site, the layer that the head belongs to")
        chosen_range(self.over_steps, self.steps)
        if (self.out / "figures.json").exists() and not self.overwrite:
            raise InputError(f"{self.out}: already holds figures; choose another --out or add --overwrite")
        self.check_model(self.steps, self.site, height=self.height, width=self.width)

    @property
    def showcase(self) -> bool:
        """Whether the built-in model's own prompts are drawn."""
        return self.built_in and not self.prompt and self.prompts is None

    @property
    def chosen(self) -> tuple[str, ...]:
        """The figures to draw; separation among all of them only where there are groups of prompts."""
        names = names_of(self.figures, FIGURES, "--figures", "figure")
        grouped = self.memorized is not None or self.showcase or self.figures != "all"
        return tuple(name for name in FIGURES if name in names and (name != "separation" or grouped))

    @property
    def texts(self) -> list[str]:
        """The prompts."""
        if self.showcase:
            return list(demo.SHOWCASE)
        if self.prompts is not None:
            return read_prompts(self.prompts, self.column)
        return [as_text(prompt) for prompt in self.prompt]

    @property
    def groups(self) -> Groups:
        """Memorized and clean prompts, where a figure compares them, and they are given or the built-in model's."""
        if not {"entropy", "separation"} & set(self.chosen):
            return None
        if self.memorized is not None and self.clean is not None:
            return read_prompts(self.memorized, self.column), read_prompts(self.clean, self.column)
        if self.built_in and (self.showcase or "separation" in self.chosen):
            return demo.prompts("memorized", "report"), demo.prompts("control", "report")
        return None

    @property
    def wanted(self) -> list[str] | None:
        """The tokens that --tokens names."""
        return None if self.tokens is None else [name.strip() for name in self.tokens.split(",") if name.strip()]


def chosen_range(text: str | None, steps: int) -> tuple[int | None, int | None]:
    """The ends of a slice, from FIRST:STOP.

    Raises:
      InputError: not two whole numbers, or no step of the run between them.
    """
    first, colon, stop = (text or ":").partition(":")
    try:
        ends = tuple(int(end) if end.strip() else None for end in (first, stop))
    except ValueError:
        ends = (0, 0)
    if not colon or not range(steps)[slice(*ends)]:
        raise InputError(
            f"--over-steps {printable(text or '', 40)}: expected FIRST:STOP, steps from 0 to {steps}, such as 40:50"
        )
    return ends[0], ends[1]
