"""Detect memorized prompts and the tokens that stand out: `memattn detect`.

Writes to --out a table in Parquet files, one row per prompt, in the order of the prompts: scores, joint p-value,
verdict, and each token's attention and gradient; manifest.json holds the settings, and results.jsonl repeats up to
10,000 rows. An interrupted run resumes when the same command is run again. Verdicts come from a calibration, the scores
of clean prompts; the built-in model has one, and --calibrate creates one. Without a model and prompts, the built-in
model scores two prompts of its own.
"""

import hashlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

from memattn_jax import demo
from memattn_jax.commands.calibrating import checked, fit, noise_seed, print_thresholds, rule_of
from memattn_jax.commands.command import FORMAT, note, run_command
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
    names_of,
    rates,
    seeds,
    some_of,
)
from memattn_jax.errors import InputError
from memattn_jax.prompts import Prompt, as_text, count_prompts, read_prompts, stream_prompts
from memattn_jax.registries import DETECTORS
from memattn_jax.runs.versions import versions
from memattn_jax.text import counted

if TYPE_CHECKING:
    from memattn_jax.detectors import Detection, Scorer
    from memattn_jax.detectors.calibration.calibration import Calibration
    from memattn_jax.detectors.calibration.verdicts import Rule
    from memattn_jax.pipeline import StableDiffusion


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
    """Calibration file: the scores of clean prompts, on which verdicts are based. Default: the built-in model's own."""
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
    """Cross-attention layer that entropy_e reads. Default: the one that the checkpoint names, else the fourth, as in
    the paper."""
    noise_norm_steps: Annotated[str | None, BY_DEFAULT] = None
    """Sampling steps that noise_norm_steps averages over, counted from 0 and separated by commas. Default: all."""
    batch_size: int = 16
    """Number of prompts scored at once."""

    def __post_init__(self) -> None:
        fill_out(self, "out/detect" if self.has_prompts or self.calibrate else "out/detect-demo")

    def check(self) -> None:
        """Raises InputError or OSError for invalid options, without importing JAX."""
        self.check_prompts(needed=not self.built_in and self.calibrate is None)
        self.check_run()
        names_of(self.detectors, tuple(DETECTORS), "--detectors", "detector")
        at_least(self, 1, "batch_size", "probes", "steps")
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


def prompts_of(options: Options) -> tuple[Iterator[Prompt], Callable[[], int] | None]:
    """The prompts to score, none if the command only calibrates, and a function that counts them."""
    given = options.prompt
    if options.prompts is not None:
        count = None if options.prompts == "-" else partial(count_prompts, options.prompts, options.column)
        return stream_prompts(options.prompts, options.column, options.kept, note), count
    if not given and options.calibrate is None:
        given = demo.SHOWCASE
    return iter([Prompt(as_text(prompt)) for prompt in given]), lambda: len(given)


def given_calibration(options: Options) -> "Calibration | None":
    """The calibration that the options name, else the built-in model's; None if one is to be fitted."""
    from memattn_jax.detectors.calibration import load_calibration

    if options.calibrate is not None:
        return None
    if options.calibration is not None:
        return load_calibration(options.calibration)
    own = options.built_in and options.model_dtype == "float32" and not options.per_prompt_noise
    return load_calibration(demo.CALIBRATION) if own else None


def make_scorer(sd: "StableDiffusion", options: Options, calibration: "Calibration | None") -> "Scorer":
    """The detectors, with settings from the options, else the calibration, else the papers."""
    from memattn_jax.detectors import Scorer
    from memattn_jax.detectors.protocol import is_fitted
    from memattn_jax.detectors.scorer import named_detectors

    calibrating = options.calibrate is not None
    settings: dict[str, Any] = dict(calibration.settings) if calibration is not None else {}
    for name in ("seed", "probes", "steps", "guidance_scale", "site"):
        if getattr(options, name) is not None:
            settings[name] = getattr(options, name)
    if options.noise_norm_steps is not None:
        settings["options"] = {"noise_norm_steps": chosen_steps(options.noise_norm_steps, options.steps)}
    if options.per_prompt_noise:
        settings["seed"] = None
    names = names_of(options.detectors, tuple(DETECTORS), "--detectors", "detector")
    detectors = dict(named_detectors(names, site=settings.get("site"), **settings.get("options", {})))
    if calibration is not None:
        detectors = calibration.fitted(detectors)
    if "all" in options.detectors.split(",") and not calibrating:
        for name in [name for name, one in detectors.items() if not is_fitted(one)]:
            del detectors[name]
            warnings.warn(
                f"{name} is left out: it needs a calibration with sampling runs of clean prompts", stacklevel=1
            )
    attribute = options.explain or calibrating
    return Scorer(sd, detectors, **settings, attribute=attribute, calibrating=calibrating)


def identity(
    scorer: "Scorer", options: Options, calibration: "Calibration | None", rule: "Rule | None"
) -> dict[str, Any]:
    """Everything that a row depends on besides its prompt."""
    from memattn_jax.detectors.calibration.calibration import settings_of
    from memattn_jax.detectors.calibration.file import to_json

    text = "" if calibration is None else to_json(calibration)
    return {
        "command": "detect",
        "format": FORMAT,
        "keep": list(options.kept),
        "model": scorer.model.fingerprint(),
        "settings": {
            "detectors": list(scorer.detectors),
            "explain": scorer.attribute,
            "dtype": scorer.model.dtype,
            **settings_of(scorer),
            "own_noise_from": (options.seed or 0) if options.per_prompt_noise else None,
            "calibration": text and hashlib.blake2b(text.encode(), digest_size=16).hexdigest(),
            "fpr": None if rule is None else rule.fpr,
            "thresholds": {} if rule is None or rule.fpr is None else rule.joint.thresholds(rule.fpr),
        },
    }


def main(options: Options) -> None:
    """Scores the prompts and writes the table."""
    from memattn_jax.runs.progress import Progress
    from memattn_jax.runs.run import batch_size, batches, fill_up, run
    from memattn_jax.runs.store import Store
    from memattn_jax.sharding.placement import make_mesh, rows_multiple
    from memattn_jax.sharding.processes import start_processes

    prompts, count = prompts_of(options)
    size, prompts = batch_size(prompts, options.batch_size)
    given = given_calibration(options)
    process, processes = start_processes(
        options.coordinator, options.process_id, options.num_processes, options.distributed
    )
    store = Store(options.out, process)
    from memattn_jax.pipeline import StableDiffusion
    from memattn_jax.report.carried import Carried
    from memattn_jax.report.detection import Ground, detection_rows, detection_schema
    from memattn_jax.report.findings import VERDICTS, summarize
    from memattn_jax.runs.table import ShardedTable

    mesh = make_mesh(options.mesh)
    sd = StableDiffusion.from_pretrained(
        demo.locate(options.model), dtype=options.model_dtype, mesh=mesh, **options.source
    )
    scorer = make_scorer(sd, options, given)
    if options.calibrate is None:
        calibration = checked(scorer, given, asked_for=options.calibration is not None)
    else:
        clean = list(map(as_text, read_prompts(str(options.calibrate), options.column)))
        calibration = fit(scorer, clean, store, fpr=options.fpr, seed=options.seed or 0, batch_size=options.batch_size)
    rule = rule_of(scorer, calibration, options.fpr, options.fdr)
    for name, detector in scorer.detectors.items():
        if site := getattr(detector, "site", None):
            print(f"{name} reads {site}")
    if options.calibrate is not None:
        if rule is not None:
            print_thresholds(rule)
        print(f"calibration.json in {store}")
        if options.prompts is None and not options.prompt:
            return
    carried = Carried(detection_schema(tuple(scorer.detectors), scorer.attribute), options.kept, sd.tokenizer)
    table = ShardedTable(
        store,
        carried.schema,
        identity(scorer, options, calibration, rule),
        shard_rows=options.shard_rows,
        process=process,
        processes=processes,
    )
    source = {"model": options.model_name, "prompts": options.prompts}
    table.claim(source | {"versions": versions()}, overwrite=options.overwrite)
    if options.overwrite and VERDICTS in store.names():
        store.remove(VERDICTS)
    progress = Progress("prompt", count)
    ground = Ground(rule, None if calibration is None else calibration.attention, sd.tokenizer, scorer.read_site)
    padded = rows_multiple(size, mesh)

    def start(jobs: list[Prompt]) -> "Detection":
        texts = [job.text for job in fill_up(jobs, padded)]
        return scorer.start(texts, [noise_seed(text, options.seed or 0, scorer.probes) for text in texts])

    def describe(batch: list[tuple[int, Prompt]], detection: "Detection | None") -> list[dict[str, Any]]:
        rows = detection_rows(batch, detection, ground)
        return [carried(row, prompt) for row, (_, prompt) in zip(rows, batch, strict=True)]

    work = batches(table.missing(prompts, lambda job: job.text), size, options.shard_rows, twins=table.twins)
    if not run(table, work, start, describe, progress, carried.repeat):
        print(f"stopped after {counted(progress.rows, 'prompt')}, all of them written; the same command resumes")
        return
    summarize(table, tuple(scorer.detectors), rule, None if calibration is None else calibration.kind, carried)


def cli(*, alone: bool = False) -> NoReturn:
    """Runs `memattn detect`; for `alone` see `run_command`."""
    run_command("detect", Options, main, kept="what --out holds is kept; the same command resumes", alone=alone)
