"""Options of `memattn audit`, its profiles, and the checks that run before a model is loaded."""

from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from memattn_jax import demo
from memattn_jax.commands.model_options import ModelOptions
from memattn_jax.commands.naming import Named, named_mitigations
from memattn_jax.commands.options import (
    BY_DEFAULT,
    at_least,
    check_sscd,
    files,
    finite,
    flag,
    judging,
    local_out,
    names_of,
    one_of,
    rates,
    seeds,
    some_of,
)
from memattn_jax.commands.own import check_own
from memattn_jax.errors import InputError, check_name
from memattn_jax.registries import DETECTORS, PRESETS, SCHEDULERS
from memattn_jax.storage import is_local


class Profile(NamedTuple):
    """How much an audit samples.

    Attributes:
      steps: of a sampling run.
      images_per_prompt: seeds.
      prompts: that are sampled of each stratum, at most.
      adversarial: training pictures that the adversarial test tries to bring back, at most.
    """

    steps: int
    images_per_prompt: int
    prompts: int
    adversarial: int


PROFILES = {
    "quick": Profile(20, 4, 64, 0),
    "standard": Profile(50, 8, 200, 0),
    "thorough": Profile(50, 16, 1000, 16),
}
BUILT_IN_MITIGATION = "attention_mask:mask=summary"  # as in the paper
FDR = 0.05


@dataclass(frozen=True, kw_only=True)
class Options(ModelOptions):
    """Audit a checkpoint for memorization: find suspicious prompts, sample them, and report rates with evidence."""

    prompts: Annotated[str | None, BY_DEFAULT] = None
    """The log: a file or folder of prompts, in any format that detect reads. Default: those of the built-in model."""
    clean: Annotated[str | None, BY_DEFAULT] = None
    """File of clean prompts like those of the log, to calibrate on. Default: the built-in model's calibration."""
    training_pictures: Annotated[Path | None, BY_DEFAULT] = None
    """Folder of training images, searched recursively. Without it, prompts are judged by how far their seeds agree.
    Default for the built-in model: the images it has memorized."""
    sscd: Annotated[Path | None, BY_DEFAULT] = None
    """Weights of SSCD, which then decides what counts as a copy; see `memattn copies`. Default: correlation."""
    preset: Annotated[str | None, one_of(*PRESETS), BY_DEFAULT] = None
    """How images are prepared for SSCD. Required with --sscd."""
    kind: Annotated[str | None, BY_DEFAULT] = None
    """Column of --prompts with the kind of each prompt; rates are also given for each kind."""
    mitigation: Annotated[str | None, BY_DEFAULT] = None
    """Mitigation to test on the same seeds, with its fields, as attention_mask:mask=summary; or none. Default: none;
    for the built-in model attention_mask:mask=summary."""
    profile: Annotated[str | None, one_of(*PROFILES), BY_DEFAULT] = None
    """How much is sampled; the cost is printed first. Default: standard; without arguments, quick."""
    steps: Annotated[int | None, BY_DEFAULT] = None
    """Number of sampling steps. Default: the profile's, 20 (quick) or 50."""
    images_per_prompt: Annotated[int | None, BY_DEFAULT] = None
    """Number of images per sampled prompt. Default: the profile's, 4, 8 or 16."""
    sampled_prompts: Annotated[int | None, BY_DEFAULT] = None
    """Prompts that are sampled at most of those flagged, of those not flagged, and of those unknown, drawn at random.
    Default: the profile's, 64, 200 or 1000."""
    adversarial: Annotated[int | None, BY_DEFAULT] = None
    """Extracted training images that optimised embeddings try to bring back, with and without the mitigation (DoRI).
    Default: the profile's, 0, 0 or 16."""
    detectors: Annotated[str, some_of("Detectors that flag prompts, separated by commas", tuple(DETECTORS))] = (
        "entropy_e,noise_norm,prediction_agreement"
    )
    fdr: Annotated[float | None, BY_DEFAULT] = None
    """False discovery rate among flagged prompts. Default: 0.05."""
    fpr: Annotated[float | None, BY_DEFAULT] = None
    """False-positive rate of the detectors' verdict, instead of --fdr."""
    guidance_scale: float = 7.5
    """Classifier-free guidance scale."""
    scheduler: Annotated[str, one_of(*SCHEDULERS)] = "ddim"
    """Sampling scheduler."""
    seed: int = 0
    """Random seed of each prompt's first image, and of the draw of prompts."""
    batch_size: int = 8
    """Number of images sampled at once; twice as many prompts are scored at once."""
    provenance: Annotated[str | None, BY_DEFAULT] = None
    """Where the log comes from, for the report."""
    licence: Annotated[str | None, BY_DEFAULT] = None
    """Licence of the log, for the report."""
    clean_provenance: Annotated[str | None, BY_DEFAULT] = None
    """Where the clean prompts come from, for the report."""
    clean_licence: Annotated[str | None, BY_DEFAULT] = None
    """Licence of the clean prompts, for the report."""
    search: bool = False
    """Audit prompts that a search finds, instead of a log: a Gibbs sampler over words that raises noise_norm. Its yield
    is no rate."""
    proposals: Annotated[str | None, BY_DEFAULT] = None
    """With --search, where words come from, such as a masked language model of yours: FILE.py:NAME or MODULE:NAME, see
    memattn_jax.search. Default for the built-in model: its grammar."""
    search_chains: int = 8
    """With --search: number of prompts that change side by side."""
    search_steps: int = 40
    """With --search: number of words that change in each."""
    search_temperature: float = 0.3
    """With --search: how far worse words may be; in standard deviations of clean prompts' scores."""
    verify: Annotated[Path | None, BY_DEFAULT] = None
    """Check a finished audit instead: the digests of its files, its schema, what follows from its lines, and some rows
    by the model."""
    rows: int = 3
    """With --verify: number of rows, drawn at random, that are scored and sampled again; 0 loads no model."""
    out: Path = Path("out/audit")
    """Output folder."""

    def check(self) -> None:
        """Raises InputError or OSError for invalid options, without importing JAX."""
        if self.verify is not None:
            self.check_verify()
            return
        self.check_sources()
        for name in ("profile", "scheduler"):
            if (value := getattr(self, name)) is not None:
                check_name(name, value, PROFILES if name == "profile" else SCHEDULERS, f"--{name}")
        judging(names_of(self.detectors, tuple(DETECTORS), "--detectors", "detector"), "--detectors")
        at_least(self, 1, "steps", "sampled_prompts", "batch_size")
        at_least(self, 2, "images_per_prompt")
        at_least(self, 0, "adversarial")
        finite(self, "guidance_scale")
        seeds(self.seed, self.chosen.images_per_prompt)
        rates(self, "fdr", "fpr")
        if self.fdr is not None and self.fpr is not None:
            raise InputError("--fdr and --fpr are mutually exclusive")
        if self.adversarial and self.pictures is None:
            raise InputError("--adversarial needs training images: --training-pictures FOLDER")
        check_sscd(self)
        if self.mitigating is not None and len(named_mitigations(self.mitigating)) != 1:
            raise InputError("--mitigation: an audit tests one mitigation")
        self.check_model(self.chosen.steps)
        if self.clean is None and self.model_dtype != "float32":
            raise InputError(f"--dtype {self.dtype}: the built-in model is calibrated in float32; add --clean FILE")

    def check_sources(self) -> None:
        """Raises InputError or OSError for prompts and images that are missing or cannot be read again."""
        files(self, "prompts", "clean", "training_pictures", "sscd")
        for name in ("prompts", "clean"):
            value = getattr(self, name)
            if value is None and not self.built_in and not (self.search and name == "prompts"):
                raise InputError(f"--{name} FILE is required with --model")
            if value == "-" or (value is not None and not is_local(value)):
                raise InputError(f"--{name} {value}: an audit needs a local file or folder, to read it again")
        self.check_search()
        if self.kind is not None and self.prompts is None:
            raise InputError("--kind names a column of a prompt file: add --prompts FILE")
        local_out(self)
        for name in ("prompts", "clean", "training_pictures"):
            source = getattr(self, name)
            if source is not None and self.out.resolve().is_relative_to(Path(source).resolve()):
                raise InputError(f"--out {self.out}: lies in {flag(name)}, so that an audit would read what it writes")

    def check_search(self) -> None:
        """Raises InputError for options of --search that do not go together."""
        if self.search and self.prompts is not None:
            raise InputError("--search and --prompts are mutually exclusive: a search needs no log")
        if self.search and self.proposals is None and not self.built_in:
            raise InputError("--search needs --proposals FILE.py:NAME with --model: words for your prompts")
        if self.proposals is not None:
            if not self.search:
                raise InputError("--proposals has no effect without --search")
            check_own(self.proposals, "--proposals")
        at_least(self, 1, "search_chains", "search_steps")
        if not 0 < self.search_temperature < inf:
            raise InputError(f"--search-temperature {self.search_temperature}: must be positive")

    def check_verify(self) -> None:
        """Raises InputError for a folder without an audit."""
        assert self.verify is not None
        at_least(self, 0, "rows")
        if not (self.verify / "audit.json").is_file():
            raise InputError(f"--verify {self.verify}: no audit.json there; give the folder of a finished audit")

    @property
    def built_in_log(self) -> bool:
        """Whether the log is that of the built-in model."""
        return self.built_in and self.prompts is None and not self.search

    @property
    def searching(self) -> dict[str, Any] | None:
        """Settings of the search; None without one."""
        names = ("search_chains", "search_steps", "search_temperature", "proposals")
        return {name: getattr(self, name) for name in names} if self.search else None

    @property
    def pictures(self) -> Path | None:
        """The folder of training images."""
        return demo.FOLDER / "memorized" if self.training_pictures is None and self.built_in else self.training_pictures

    @property
    def mitigating(self) -> str | None:
        """The mitigation to test; None is none."""
        chosen = self.mitigation or (BUILT_IN_MITIGATION if self.built_in else "none")
        return None if chosen == "none" else chosen

    @property
    def named(self) -> Named | None:
        """The same as a name with fields."""
        return None if self.mitigating is None else Named(self.mitigating)

    @property
    def profile_name(self) -> str:
        """The profile; "custom" where an option changes it."""
        base = self.profile or ("quick" if self.built_in_log else "standard")
        return base if self.chosen == PROFILES[base] else "custom"

    @property
    def chosen(self) -> Profile:
        """How much is sampled."""
        base = PROFILES[self.profile or ("quick" if self.built_in_log else "standard")]
        own = {"steps": self.steps, "images_per_prompt": self.images_per_prompt, "prompts": self.sampled_prompts}
        own["adversarial"] = self.adversarial
        return base._replace(**{name: value for name, value in own.items() if value is not None})

    @property
    def control(self) -> tuple[str, float]:
        """What the share of wrong verdicts is controlled by, and at what rate."""
        return ("fdr", FDR if self.fdr is None else self.fdr) if self.fpr is None else ("fpr", self.fpr)
