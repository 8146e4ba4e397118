"""The options of `memattn detect`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from memattn_jax.commands.model_options import ModelOptions
from memattn_jax.commands.options import (
    BY_DEFAULT,
    PromptOptions,
    RunOptions,
    at_least,
    chosen_steps,
    files,
    fill_out,
    finite,
    installed,
    judging,
    names_of,
    rates,
    seeds,
    some_of,
)
from memattn_jax.errors import InputError
from memattn_jax.registries import DETECTORS


@dataclass(frozen=True, kw_only=True)
class Options(PromptOptions, RunOptions, ModelOptions):
    """Score prompts for memorization and name the tokens that stand out."""

    out: Annotated[str, BY_DEFAULT] = ""
    """Output folder: a path, or a gs:// or s3:// URL. Default: out/detect; without prompts, out/detect-demo."""
    detectors: Annotated[str, some_of("Detectors to run, separated by commas", tuple(DETECTORS))] = (
        "entropy_e,noise_norm"
    )
    explain: bool = True
    """Compute which tokens stand out; costs a forward and a backward pass per prompt."""
    calibration: Annotated[Path | None, BY_DEFAULT] = None
    """Calibration file: the scores of clean prompts, on which verdicts are based. Default: the built-in model's own, if
    it matches the settings."""
    calibrate: Annotated[Path | None, BY_DEFAULT] = None
    """File of clean prompts to calibrate on. The calibration is used in this run and written to calibration.json in
    --out."""
    fpr: Annotated[float | None, BY_DEFAULT] = None
    """False-positive rate of the verdict, which combines all detectors. Default: the calibration's, or 0.01."""
    fdr: Annotated[float | None, BY_DEFAULT] = None
    """False discovery rate among the prompts reported as memorized, instead of --fpr. Verdicts then depend on all
    prompts together (Benjamini-Hochberg)."""
    seed: Annotated[int | None, BY_DEFAULT] = None
    """Random seed for the probe noise. Default: the calibration's, or 0."""
    per_prompt_noise: bool = False
    """Draw each prompt's probe noise from its text and the seed, instead of using the same noise for all prompts."""
    probes: Annotated[int | None, BY_DEFAULT] = None
    """Number of noise samples to average scores over. Default: the calibration's, or 1."""
    steps: Annotated[int | None, BY_DEFAULT] = None
    """Number of sampling steps; first-step detectors compute the first one. Default: the calibration's, or 50."""
    guidance_scale: Annotated[float | None, BY_DEFAULT] = None
    """Guidance scale for trajectory detectors. Default: the calibration's, or 7.5."""
    site: Annotated[str | None, BY_DEFAULT] = None
    """Cross-attention layer that entropy_e reads. Default: the calibration's, else the one that the checkpoint names,
    else the fourth, as in the paper."""
    noise_norm_steps: Annotated[str | None, BY_DEFAULT] = None
    """Sampling steps that noise_norm_steps averages over, counted from 0 and separated by commas. Default: the
    calibration's, else all."""
    batch_size: int = 16
    """Number of prompts scored at once."""
    engine: Literal["own", "ray"] = "own"
    """Where prompts are scored: in this process, or by Ray's actors, which load the model from the same path."""
    ray_address: Annotated[str | None, BY_DEFAULT] = None
    """Ray cluster, such as auto or ray://host:10001. Default: Ray is started on this machine."""
    ray_actors: Annotated[int | None, BY_DEFAULT] = None
    """Number of Ray actors. Default: one per GPU, else one per TPU host, else one per node."""

    def __post_init__(self) -> None:
        fill_out(self, "out/detect" if self.has_prompts or self.calibrate else "out/detect-demo")

    def check(self) -> None:
        """Raises InputError or OSError for invalid options, without importing JAX."""
        self.check_prompts(needed=not self.built_in and self.calibrate is None)
        self.check_run()
        names = names_of(self.detectors, tuple(DETECTORS), "--detectors", "detector")
        if self.calibrate is not None:
            judging(names, "--calibrate")
        at_least(self, 1, "batch_size", "probes", "steps", "ray_actors")
        if self.engine != "ray" and (self.ray_address, self.ray_actors) != (None, None):
            raise InputError("--ray-address and --ray-actors have no effect without --engine ray")
        if self.engine == "ray":
            installed("ray", "ray")
        finite(self, "guidance_scale")
        seeds(self.seed or 0, self.probes or 1)
        rates(self, "fpr", "fdr")
        if self.fpr is not None and self.fdr is not None:
            raise InputError("--fpr and --fdr are mutually exclusive")
        chosen_steps(self.noise_norm_steps, self.steps)
        if self.calibration is not None and self.calibrate is not None:
            raise InputError(
                "--calibration and --calibrate are mutually exclusive: load a calibration or fit a new one"
            )
        files(self, "calibration", "calibrate")
        self.check_model(self.steps, self.site)


class OneColumn(Options):
    """Options that keep one column, whose name may have commas, and spaces at its ends."""

    @property
    def kept(self) -> tuple[str, ...]:
        """The column to copy."""
        return () if self.keep is None else (self.keep,)
