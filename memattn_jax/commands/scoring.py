"""Scores of a whole log in a table that resumes: what `detect` and `audit` share."""

import hashlib
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from memattn_jax import demo
from memattn_jax.commands.calibrating import fit, print_thresholds, rule_of, write_calibration
from memattn_jax.commands.command import FORMAT
from memattn_jax.commands.detect_options import Options
from memattn_jax.commands.options import chosen_steps, names_of
from memattn_jax.errors import InputError
from memattn_jax.prompts import Prompt, as_text, read_prompts
from memattn_jax.prompts.noise_seed import noise_seed
from memattn_jax.prompts.record import valid_text
from memattn_jax.registries import DETECTORS
from memattn_jax.runs.versions import versions
from memattn_jax.text import counted

if TYPE_CHECKING:
    from memattn_jax.detectors import Detection, Scorer
    from memattn_jax.detectors.calibration.calibration import Calibration
    from memattn_jax.detectors.calibration.verdicts import Rule
    from memattn_jax.pipeline import StableDiffusion
    from memattn_jax.report.carried import Carried
    from memattn_jax.report.findings import Findings
    from memattn_jax.runs.ray_engine import Pending
    from memattn_jax.runs.table import ShardedTable
    from memattn_jax.storage import Store


class Log(NamedTuple):
    """The prompts to score.

    Attributes:
      prompts: records, read as they are needed.
      batch: how many are scored at once.
      total: returns their number, or an estimate; None where there is none.
    """

    prompts: Iterator[Prompt]
    batch: int
    total: Callable[[], int | None]


def load_scorer(options: Options, calibration: "Calibration | None", fingerprint: str) -> "Scorer":
    """Model and detectors, as an engine's worker loads them.

    Args:
      options: of the command.
      calibration: see `make_scorer`.
      fingerprint: of the model in the process that writes the table.

    Raises:
      InputError: the worker finds another model at the same place.
    """
    from memattn_jax.pipeline import StableDiffusion
    from memattn_jax.sharding.placement import make_mesh

    model = options.model or demo.MODEL
    mesh = make_mesh(options.mesh)
    sd = StableDiffusion.from_pretrained(model, dtype=options.model_dtype, mesh=mesh, **options.source)
    if sd.fingerprint() != fingerprint:
        raise InputError(f"{model}: another model there than where the prompts are read")
    return make_scorer(sd, options, calibration)


class Detected(NamedTuple):
    """A table with the scores of a whole log, and what they were made with.

    Attributes:
      table: the rows.
      scorer: the detectors.
      calibration: what clean prompts score; None without one.
      rule: for verdicts; likewise.
      carried: columns from the prompt records.
      found: what a summary says of the rows of this process.
    """

    table: "ShardedTable"
    scorer: "Scorer"
    calibration: "Calibration | None"
    rule: "Rule | None"
    carried: "Carried"
    found: "Findings"


def given_calibration(options: Options) -> "Calibration | None":
    """The calibration that the options name, else the built-in model's; None if one is to be fitted."""
    from memattn_jax.detectors.calibration import load_calibration

    if options.calibrate is not None:
        return None
    if options.calibration is not None:
        return load_calibration(options.calibration)
    own = options.built_in and options.model_dtype == "float32" and not options.per_prompt_noise
    return load_calibration(demo.CALIBRATION) if own else None


def clean_prompts(options: Options) -> list[str] | None:
    """The prompts to calibrate on, read whole; None where the options ask for no calibration."""
    if options.calibrate is None:
        return None
    return list(map(as_text, read_prompts(str(options.calibrate), options.column)))


def check_schedule(options: Options, calibration: "Calibration | None") -> None:
    """Raises InputError where the checkpoint's settings do not suit the steps of `make_scorer`; reads no weights."""
    from memattn_jax.detectors import Scorer

    own = Scorer.steps if calibration is None else calibration.settings.get("steps", Scorer.steps)
    options.check_schedule("ddim", options.steps or own)


def make_scorer(sd: "StableDiffusion", options: Options, calibration: "Calibration | None") -> "Scorer":
    """The detectors, with settings from the options, else the calibration, else the papers.

    Where a calibration is asked for and there is none yet, they are those that clean prompts are scored with.
    """
    from memattn_jax.detectors import Scorer
    from memattn_jax.detectors.protocol import is_fitted
    from memattn_jax.detectors.scorer import named_detectors

    calibrating = options.calibrate is not None and calibration is None
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


def match_calibration(
    sd: "StableDiffusion", options: Options, given: "Calibration | None"
) -> "tuple[Scorer, Calibration | None]":
    """The detectors, and the calibration if it matches them.

    One that does not match and was not asked for is not used at all, with a warning: neither its settings, nor its fits
    of detectors, nor for verdicts.

    Raises:
      InputError: a calibration that the options name does not match, or a detector lacks its fit.
    """
    try:
        scorer = make_scorer(sd, options, given)
        if given is not None:
            given.check(scorer)
    except InputError as error:
        if given is None or options.calibration is not None:
            raise
        warnings.warn(f"no verdicts: {error}", stacklevel=1)
        return make_scorer(sd, options, None), None
    return scorer, given


def identity(
    scorer: "Scorer", options: Options, calibration: "Calibration | None", rule: "Rule | None"
) -> dict[str, Any]:
    """Everything that a row depends on besides its prompt."""
    from memattn_jax.detectors.calibration.calibration import settings_of
    from memattn_jax.detectors.calibration.file import to_json

    text = "" if calibration is None else to_json(calibration)
    limits = {} if rule is None or rule.fpr is None else rule.joint.thresholds(rule.fpr)
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
            "thresholds": {name: limit if math.isfinite(limit) else None for name, limit in limits.items()},
        },
    }


def score_log(
    sd: "StableDiffusion",
    options: Options,
    log: Log | None,
    given: "Calibration | None",
    store: "Store",
    part: tuple[int, int] = (0, 1),
    clean: Sequence[str] | None = None,
) -> Detected | None:
    """Calibrates where the options say so, and scores the log, or what is missing of it, into a table.

    Args:
      sd: the model.
      options: of the command.
      log: the prompts; None only calibrates.
      given: see `given_calibration`.
      store: the output folder.
      part: index of this process, and number of processes.
      clean: see `clean_prompts`.

    Returns:
      None where the run was asked to stop, or only calibrates.

    Raises:
      InputError: the folder holds rows with other settings, or another calibration.
    """
    from memattn_jax.report.carried import Carried
    from memattn_jax.report.detection import Ground, detection_rows, detection_schema
    from memattn_jax.report.findings import LAST, Findings
    from memattn_jax.runs.progress import Progress
    from memattn_jax.runs.ray_engine import RayActors
    from memattn_jax.runs.run import batches, fill_up, run
    from memattn_jax.runs.stream import AHEAD
    from memattn_jax.runs.table import ShardedTable
    from memattn_jax.sharding.placement import rows_multiple

    fitted = None
    if clean is None:
        scorer, calibration = match_calibration(sd, options, given)
    else:
        looking = make_scorer(sd, options, None)
        fitted = fit(looking, clean, fpr=options.fpr, seed=options.seed or 0, batch_size=options.batch_size)
        scorer, calibration = make_scorer(sd, options, fitted), fitted
    rule = rule_of(scorer, calibration, options.fpr, options.fdr)
    for name, detector in scorer.detectors.items():
        if site := getattr(detector, "site", None):
            print(f"{name} reads {site}")
    if fitted is not None and rule is not None:
        print_thresholds(rule)
    if log is None:
        if fitted is not None:
            write_calibration(fitted, store, overwrite=options.overwrite)
        return None
    carried = Carried(detection_schema(tuple(scorer.detectors), scorer.attribute), options.kept, sd.tokenizer)
    table = ShardedTable(
        store,
        carried.schema,
        identity(scorer, options, calibration, rule),
        shard_rows=options.shard_rows,
        process=part[0],
        processes=part[1],
    )
    source = {"model": options.model_name, "prompts": options.prompts and valid_text(options.prompts)}
    table.claim(source | {"versions": versions()}, overwrite=options.overwrite)
    if fitted is not None:  # not before: a run that is refused leaves the one that is there
        write_calibration(fitted, store, overwrite=options.overwrite)
    if options.overwrite:
        for name in LAST & set(store.names()):  # of the run that is replaced
            with suppress(FileNotFoundError):  # another process was quicker
                store.remove(name)
    progress = Progress("prompt", log.total)
    ground = Ground(rule, None if calibration is None else calibration.attention, sd.tokenizer, scorer.read_site)
    padded = rows_multiple(log.batch, sd.mesh)
    engine: Scorer | RayActors = scorer
    if options.engine == "ray":
        same = replace(options, dtype=sd.dtype)  # the default differs between machines
        make = partial(load_scorer, same, calibration, sd.fingerprint())
        engine = RayActors(make, options.ray_address, options.ray_actors)

    def start(jobs: list[Prompt]) -> "Detection | Pending":
        texts = [job.text for job in fill_up(jobs, padded)]
        return engine.start(texts, [noise_seed(text, options.seed or 0, scorer.probes) for text in texts])

    def describe(batch: list[tuple[int, Prompt]], detection: "Detection | None") -> list[dict[str, Any]]:
        rows = detection_rows(batch, detection, ground)
        return [carried(row, prompt) for row, (_, prompt) in zip(rows, batch, strict=True)]

    found = Findings(tuple(scorer.detectors), rule)
    table.watch(found.columns, found.see)
    lacking = table.missing(log.prompts, lambda job: job.text, carried.copies)
    work = batches(lacking, log.batch, options.shard_rows, twins=table.twins)
    ahead = getattr(engine, "ahead", AHEAD)
    if not run(table, work, start, describe, progress, carried.repeat, ahead):
        print(f"stopped after {counted(progress.rows, 'prompt')}, all of them written; the same command resumes")
        return None
    return Detected(table, scorer, calibration, rule, carried, found)
