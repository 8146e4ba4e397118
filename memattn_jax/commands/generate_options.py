"""The options of `memattn generate`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from memattn_jax.commands.mitigating import parse_options
from memattn_jax.commands.model_options import ModelOptions
from memattn_jax.commands.options import (
    BY_DEFAULT,
    PromptOptions,
    RunOptions,
    at_least,
    files,
    fill_out,
    finite,
    one_name,
    one_of,
    seeds,
    texts,
)
from memattn_jax.errors import InputError, check_name
from memattn_jax.registries import FIRST_STEP, MITIGATIONS, SCHEDULERS

MITIGATION = (
    "Mitigation, applied to every image, or with --guard only to those that the guard flags; see docs/mitigations. "
    "attention_mask removes tokens from the attention and strengthens the begin token (Ren et al., ECCV 2024)."
)


@dataclass(frozen=True, kw_only=True)
class Options(PromptOptions, RunOptions, ModelOptions):
    """Generate images with Stable Diffusion and measure how each prompt's attention spreads over its tokens."""

    out: Annotated[str, BY_DEFAULT] = ""
    """Output folder: a path, or a gs:// or s3:// URL. Default: out/generate; without a model
    and prompts, out/generate-demo."""
    negative_prompt: str = ""
    """Negative prompt: what the images should not show."""
    steps: int = 50
    """Number of sampling steps."""
    guidance_scale: float = 7.5
    """Classifier-free guidance scale; 1 or less turns guidance off."""
    scheduler: Annotated[str, one_of(*SCHEDULERS)] = "ddim"
    """Sampling scheduler."""
    seed: int = 0
    """Random seed of each prompt's first image; further images use the following seeds."""
    images_per_prompt: int = 1
    """Number of images per prompt."""
    batch_size: int = 4
    """Number of images sampled at once."""
    height: Annotated[int | None, BY_DEFAULT] = None
    """Image height in pixels. Default: the size that the model was trained on."""
    width: Annotated[int | None, BY_DEFAULT] = None
    """Image width in pixels. Default: the size that the model was trained on."""
    mitigation: Annotated[str, one_name(MITIGATION, "none", *MITIGATIONS)] = "none"
    mitigation_options: Annotated[tuple[str, ...], BY_DEFAULT] = ()
    """Options of the mitigation, its fields, as KEY=VALUE. attention_mask has begin_scale, a factor for the begin
    token's attention logit (default 1.25), and mask, the tokens to remove: padding (default), summary (padding and end
    token) or none."""
    guard: Annotated[str, one_of("none", *FIRST_STEP)] = "none"
    """First-step detector that decides for each image whether to mitigate: only if its score is over the threshold.
    Mitigates with attention_mask unless --mitigation names another one."""
    calibration: Annotated[Path | None, BY_DEFAULT] = None
    """Calibration file for --guard, from `detect --calibrate`. Default: the built-in model's own."""

    def __post_init__(self) -> None:
        fill_out(self, "out/generate-demo" if self.showcase else "out/generate")

    def check(self) -> None:
        """Raises InputError or OSError for invalid options, without importing JAX."""
        self.check_prompts(needed=not self.built_in)
        self.check_run()
        at_least(self, 1, "steps", "images_per_prompt", "batch_size")
        finite(self, "guidance_scale")
        texts(self, "negative_prompt")
        seeds(self.seed, self.images_per_prompt)
        check_name("scheduler", self.scheduler, SCHEDULERS, "--scheduler")
        check_name("mitigation", self.mitigation, ("none", *MITIGATIONS), "--mitigation")
        check_name("first-step detector", self.guard, ("none", *FIRST_STEP), "--guard")
        self.check_mitigation()
        if self.showcase:
            self.check_showcase()
        self.check_model(self.steps, height=self.height, width=self.width)

    def check_mitigation(self) -> None:
        """Raises InputError for mitigation options without a mitigation, and for a guard without a calibration."""
        if self.guard != "none" and self.calibration is None and not self.built_in:
            raise InputError("--guard needs --calibration FILE; create one with `detect --calibrate CLEAN_PROMPTS`")
        files(self, "calibration")
        if self.calibration is not None and self.guard == "none":
            raise InputError("--calibration has no effect without --guard")
        parse_options(self.mitigation_options)
        if self.mitigation_options and self.guard == self.mitigation == "none":
            raise InputError("--mitigation-options has no effect without --mitigation or --guard")

    def check_showcase(self) -> None:
        """Raises InputError for options that have a value of their own where memorization is shown."""
        own = {"guard": ("none",), "mitigation": ("none",), "height": (None, 64), "width": (None, 64)}
        if others := [name for name, values in own.items() if getattr(self, name) not in values]:
            what = "without them, the built-in model shows what memorization is"
            raise InputError(f"--{others[0]} needs prompts: {what}")

    @property
    def mitigating(self) -> str:
        """Name of the mitigation; with a guard, attention_mask unless another one is named."""
        return "attention_mask" if self.guard != "none" and self.mitigation == "none" else self.mitigation

    @property
    def showcase(self) -> bool:
        """Whether to show what memorization is: neither a model nor prompts are given."""
        return self.built_in and not self.has_prompts
