"""Options of `memattn evaluate`, and the checks that run before a model is loaded."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from memattn_jax.commands.model_options import ModelOptions
from memattn_jax.commands.naming import named_mitigations
from memattn_jax.commands.options import (
    BY_DEFAULT,
    at_least,
    check_sscd,
    files,
    finite,
    local_out,
    names_of,
    one_of,
    seeds,
    some_of,
)
from memattn_jax.errors import InputError, check_name
from memattn_jax.registries import DETECTORS, PRESETS, SCHEDULERS


@dataclass(frozen=True, kw_only=True)
class Options(ModelOptions):
    """Measure how well detectors separate memorized from clean prompts."""

    memorized: Annotated[str | None, BY_DEFAULT] = None
    """File of memorized prompts, in any format that detect reads. Default: those of the built-in model."""
    clean: Annotated[str | None, BY_DEFAULT] = None
    """File of prompts that are not memorized, in the same formats. Default: those of the built-in model."""
    detectors: Annotated[str, some_of("Detectors to evaluate, separated by commas", tuple(DETECTORS))] = "all"
    seed: int = 0
    """Random seed for the probe noise."""
    probes: int = 1
    """Number of noise samples to average scores over."""
    steps: int = 50
    """Number of sampling steps; first-step detectors compute the first one."""
    guidance_scale: float = 7.5
    """Guidance scale for trajectory detectors."""
    site: Annotated[str | None, BY_DEFAULT] = None
    """Cross-attention layer that entropy_e reads. Default: the one that the checkpoint names, else the fourth, as in
    the paper."""
    calibration: Annotated[Path | None, BY_DEFAULT] = None
    """Calibration file with the clean sampling runs that latent_step_deviation compares to; it should come from other
    prompts than --clean. Default: the built-in model's own."""
    batch_size: int = 16
    """Number of prompts scored at once, rounded up to a multiple of the number of devices."""
    out: Path = Path("out/evaluate")
    """Output folder."""
    report: bool = False
    """Also write report.html, a page that needs no network."""
    mitigations: Annotated[str | None, BY_DEFAULT] = None
    """Evaluate mitigations instead of detectors: names separated by commas, each with fields of its own if need be, as
    attention_mask:mask=summary; or all. Samples every prompt on the same seeds with each of them."""
    images_per_prompt: int = 2
    """With --mitigations: images per prompt, of consecutive seeds from --seed."""
    scheduler: Annotated[str, one_of(*SCHEDULERS)] = "ddim"
    """With --mitigations: sampling scheduler."""
    pictures: Annotated[Path | None, BY_DEFAULT] = None
    """With --mitigations: training images of the memorized prompts, a folder with metadata.jsonl or a Parquet file, as
    finetune reads them. Default: the built-in model's own; else images are compared with those made without a
    mitigation."""
    kind: Annotated[str | None, BY_DEFAULT] = None
    """With --mitigations: column of --memorized with the kind of each prompt, such as verbatim or template; results are
    also given for each kind."""
    adversarial: int = 0
    """With --mitigations: number of memorized prompts whose embeddings are optimised to return their training image,
    under each mitigation (DoRI)."""
    clip: Annotated[Path | None, BY_DEFAULT] = None
    """With --mitigations: folder of a CLIP model of transformers, which scores how well images follow their prompts."""
    sscd: Annotated[Path | None, BY_DEFAULT] = None
    """With --mitigations: weights of SSCD; see `memattn copies`."""
    preset: Annotated[str | None, one_of(*PRESETS), BY_DEFAULT] = None
    """How images are prepared for SSCD. Required with --sscd."""

    def check(self) -> None:
        """Raises InputError or OSError for invalid options, without importing JAX."""
        names_of(self.detectors, tuple(DETECTORS), "--detectors", "detector")
        at_least(self, 1, "batch_size", "probes", "steps")
        finite(self, "guidance_scale")
        seeds(self.seed, self.probes)
        files(self, "memorized", "clean", "calibration")
        local_out(self)
        if self.model is not None and self.memorized is None and self.clean is None:
            raise InputError("no prompts: give --memorized FILE and --clean FILE")
        if (self.memorized is None) != (self.clean is None):
            raise InputError(f"--{'memorized' if self.memorized is None else 'clean'} FILE is required too")
        done = (self.out / "evaluation.json").exists() and self.mitigations is None  # mitigations are resumed
        if done and not self.overwrite:
            raise InputError(f"{self.out}: already holds an evaluation; choose another --out or add --overwrite")
        self.check_model(self.steps, self.site)
        self.check_mitigations()

    def check_mitigations(self) -> None:
        """Raises InputError for wrong names, and for options that have no effect without --mitigations."""
        if self.mitigations is None:
            for name in ("pictures", "kind", "clip", "sscd", "preset", "adversarial"):
                if getattr(self, name):
                    raise InputError(f"--{name} has no effect without --mitigations")
            return
        named_mitigations(self.mitigations)
        at_least(self, 1, "images_per_prompt")
        at_least(self, 0, "adversarial")
        if self.adversarial and self.pictures is None and not self.built_in_prompts:
            raise InputError("--adversarial needs training images: --pictures FOLDER")
        seeds(self.seed, self.images_per_prompt)
        check_name("scheduler", self.scheduler, SCHEDULERS, "--scheduler")
        files(self, "pictures", "clip", "sscd")
        check_sscd(self)
        if self.kind is not None and self.memorized is None:
            raise InputError("--kind has no effect without --memorized")

    @property
    def built_in_prompts(self) -> bool:
        """Whether the built-in model is evaluated on its own prompts."""
        return self.built_in and self.memorized is None
