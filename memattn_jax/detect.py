"""Detect memorized prompts, and the tokens to blame: `python -m memattn_jax.detect`.

Writes to --out a table in Parquet files, one row per prompt, in the order of the prompts: scores, verdict, and each
token's attention and gradient; manifest.json holds the settings, and results.jsonl repeats up to 10,000 rows. An
interrupted run resumes when the same command is run again. Thresholds come from a calibration; the built-in model has
one, and --calibrate fits one on clean prompts. Without a model and prompts, the built-in model scores two of its own.
"""

import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from memattn_jax import demo
from memattn_jax.commands import FORMAT, note, run_command, versions
from memattn_jax.errors import InputError
from memattn_jax.names import DETECTORS
from memattn_jax.options import (
    BY_DEFAULT,
    ModelOptions,
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
from memattn_jax.prompts import Prompt, as_text, count_prompts, read_prompts, stream_prompts

if TYPE_CHECKING:
    from memattn_jax.calibration import Calibration
    from memattn_jax.detectors import Detection, Scorer
    from memattn_jax.pipeline import StableDiffusion
    from memattn_jax.report.carried import Carried
    from memattn_jax.runs.store import Store
    from memattn_jax.runs.table import ShardedTable


@dataclass(frozen=True, kw_only=True)
class Options(PromptOptions, RunOptions, ModelOptions):
    """Score prompts for memorization, and name the tokens that stand out."""

    out: Annotated[str, BY_DEFAULT] = ""
    """Output folder: a path, or a gs:// or s3:// URL. Default: out/detect, or without prompts out/detect-demo."""
    detectors: Annotated[str, some_of("Detectors to run, separated by commas", DETECTORS)] = "entropy_e,noise_norm"
    explain: bool = True
    """Compute which tokens stand out; costs a forward and a backward pass for each prompt."""
    calibration: Annotated[Path | None, BY_DEFAULT] = None
    """Calibration file to take thresholds from. Default: the built-in model's own."""
    calibrate: Annotated[Path | None, BY_DEFAULT] = None
    """File of clean prompts to fit thresholds on. They are used at once, and written to calibration.json in --out."""
    fpr: float = 0.01
    """--calibrate: share of clean prompts that may be over a threshold."""
    seed: Annotated[int | None, BY_DEFAULT] = None
    """Random seed for the probe noise. Default: the calibration's, or 0."""
    per_prompt_noise: bool = False
    """Draw each prompt's probe noise from its text and the seed, instead of using the same noise for all prompts."""
    probes: Annotated[int | None, BY_DEFAULT] = None
    """Number of noise samples to average scores over. Default: the calibration's, or 1."""
    steps: Annotated[int | None, BY_DEFAULT] = None
    """Number of sampling steps; first-step detectors look at the first one. Default: the calibration's, or 50."""
    guidance_scale: Annotated[float | None, BY_DEFAULT] = None
    """Guidance scale for trajectory detectors. Default: the calibration's, or 7.5."""
    site: Annotated[str | None, BY_DEFAULT] = None
    """Cross-attention layer that entropy_e reads. Default: the calibration's, or the paper's, the fourth."""
    noise_norm_steps: Annotated[str | None, BY_DEFAULT] = None
    """Steps that noise_norm_steps averages over, counted from 0 and separated by commas. Default: all."""
    batch_size: int = 16
    """Number of prompts scored at once."""

    def __post_init__(self) -> None:
        fill_out(self, "out/detect" if self.has_prompts or self.calibrate else "out/detect-demo")

    def check(self) -> None:
        """Raises InputError or OSError for options that cannot be, without importing JAX."""
        self.check_prompts(needed=self.model is not None and self.calibrate is None)
        self.check_run()
        names_of(self.detectors, DETECTORS, "--detectors", "detector")
        at_least(self, 1, "batch_size", "probes", "steps")
        finite(self, "guidance_scale")
        seeds(self.seed or 0, self.probes or 1)
        rates(self, "fpr")
        chosen_steps(self.noise_norm_steps, self.steps)
        if self.calibration is not None and self.calibrate is not None:
            raise InputError("--calibration and --calibrate are mutually exclusive: use thresholds, or fit new ones")
        files(self, "calibration", "calibrate")
        self.check_model(self.steps, self.site)


def prompts_of(options: Options) -> tuple[Iterator[Prompt], Callable[[], int] | None]:
    """The prompts to score, none where the command only calibrates, and how to count them."""
    given = options.prompt
    if options.prompts is not None:
        count = None if options.prompts == "-" else partial(count_prompts, options.prompts, options.column)
        return stream_prompts(options.prompts, options.column, options.kept, note), count
    if not given and options.calibrate is None:
        given = demo.SHOWCASE
    return iter([Prompt(as_text(prompt)) for prompt in given]), lambda: len(given)


def given_calibration(options: Options) -> "Calibration | None":
    """The thresholds to use, before any are fitted."""
    from memattn_jax.calibration import Calibration

    if options.calibrate is not None:
        return None
    if options.calibration is not None:
        return Calibration.load(options.calibration)
    own = options.model is None and options.model_dtype == "float32" and not options.per_prompt_noise
    return Calibration.load(demo.CALIBRATION) if own else None


def make_scorer(sd: "StableDiffusion", options: Options, calibration: "Calibration | None") -> "Scorer":
    """The detectors, with what the options say, else the calibration, else the papers."""
    from memattn_jax.detectors import Scorer

    names = names_of(options.detectors, DETECTORS, "--detectors", "detector")
    settings: dict[str, Any] = dict(calibration.settings) if calibration is not None else {}
    for name in ("seed", "probes", "steps", "guidance_scale", "site"):
        if getattr(options, name) is not None:
            settings[name] = getattr(options, name)
    if options.noise_norm_steps is not None:
        settings["noise_norm_steps"] = chosen_steps(options.noise_norm_steps, options.steps)
    if settings.get("noise_norm_steps") is not None:
        settings["noise_norm_steps"] = tuple(settings["noise_norm_steps"])
    if options.per_prompt_noise:
        settings["seed"] = None
    attribute = options.explain or options.calibrate is not None
    return Scorer(sd, names, **settings | {"attribute": attribute})


def noise_seed(prompt: str, scorer: "Scorer", options: Options) -> int:
    """Seed of the first probe where each prompt has its own."""
    return (zlib.crc32(prompt.encode()) + (options.seed or 0)) % (2**32 - scorer.probes)


def fit(scorer: "Scorer", options: Options, store: "Store") -> "Calibration":
    """Fits thresholds, writes them and tells them."""
    from tqdm import tqdm

    from memattn_jax.calibration import calibrate
    from memattn_jax.detectors.scorer import score_batches
    from memattn_jax.metrics import negatives_needed
    from memattn_jax.parallel import rows_multiple

    clean = read_prompts(str(options.calibrate), options.column)
    needed = negatives_needed(options.fpr)
    if len(clean) < needed:
        warnings.warn(
            f"{len(clean)} clean prompts cannot resolve a false-positive rate of {options.fpr:g}; "
            f"at least {needed} are needed",
            stacklevel=1,
        )
    rows = ((as_text(prompt), noise_seed(prompt, scorer, options)) for prompt in clean)
    size = rows_multiple(min(options.batch_size, len(clean)), scorer.sd.mesh)
    with tqdm(total=len(clean), unit="prompt", desc="calibrating", disable=None) as bar:
        detections = []
        for detection in score_batches(scorer, rows, size):
            detections.append(detection)
            bar.update(len(detection.prompts))
    calibration = calibrate(scorer, detections, options.fpr)
    store.write("calibration.json", calibration.to_json().encode())
    for name, threshold in calibration.thresholds.items():
        print(
            f"{name}: threshold {threshold.value:.4f}, 95 % interval {threshold.low:.4f} to {threshold.high:.4f}, "
            f"{threshold.negatives} clean prompts"
        )
    return calibration


def checked(scorer: "Scorer", options: Options, given: "Calibration | None") -> "Calibration | None":
    """The given calibration if it fits the scorer; InputError where the command line named one that does not."""
    if given is not None:
        try:
            given.check(scorer)
        except InputError as error:
            if options.calibration is not None:
                raise
            warnings.warn(f"no verdicts: {error}", stacklevel=1)
            return None
    return given


def thresholds(scorer: "Scorer", options: Options, given: "Calibration | None", store: "Store") -> "Calibration | None":
    """The calibration that verdicts come from: fitted now, or the given one."""
    return checked(scorer, options, given) if options.calibrate is None else fit(scorer, options, store)


def identity(scorer: "Scorer", options: Options, calibration: "Calibration | None") -> dict[str, Any]:
    """All that a row depends on besides its prompt."""
    from memattn_jax.calibration import fingerprint, settings_of

    limits = {} if calibration is None else {name: limit.value for name, limit in calibration.thresholds.items()}
    return {
        "command": "detect",
        "format": FORMAT,
        "keep": list(options.kept),
        "model": fingerprint(scorer.sd),
        "settings": {
            "detectors": list(scorer.detectors),
            "explain": scorer.attribute,
            "dtype": scorer.sd.dtype,
            **settings_of(scorer),
            "own_noise_from": (options.seed or 0) if options.per_prompt_noise else None,
            "thresholds": {name: limits[name] for name in scorer.detectors if name in limits},
        },
    }


def summarize(table: "ShardedTable", judged: list[str], carried: "Carried") -> None:
    """Tells of all rows, and repeats them in results.jsonl where they are few and no other process adds to them."""
    from memattn_jax.report.results import write_json_lines

    over: Counter[str] = Counter()
    rows = failed = cut = 0
    for row in table.rows(["over", "error", "cut"]):
        rows += 1
        cut += row["cut"] is True
        failed += row["error"] is not None
        over.update(row["over"] or ())
    for name in judged:
        print(f"{name}: {over[name]} of {rows} prompts over the threshold (*)")
    if failed:
        print(f"{failed} prompts lack a score; the column error says why")
    if cut:
        print(carried.told(cut))
    alone = table.processes == 1
    repeated = " and results.jsonl" if alone and write_json_lines(table, rows) else ""
    whole = "" if alone else f" of {table.jobs}, by all {table.processes} processes so far"
    print(f"{rows} prompts{whole} in {table.store}, as Parquet files{repeated}")


def main(options: Options) -> None:
    """Scores what was asked for."""
    from memattn_jax.parallel import make_mesh, rows_multiple, start_processes
    from memattn_jax.runs.progress import Progress
    from memattn_jax.runs.run import batch_size, batches, fill_up, run
    from memattn_jax.runs.store import Store

    prompts, count = prompts_of(options)
    size, prompts = batch_size(prompts, options.batch_size)
    given = given_calibration(options)
    process, processes = start_processes(
        options.coordinator, options.process_id, options.num_processes, options.distributed
    )
    store = Store(options.out, process)
    from memattn_jax.pipeline import StableDiffusion
    from memattn_jax.report.carried import Carried
    from memattn_jax.report.detection import detection_rows, detection_schema, tell
    from memattn_jax.runs.table import ShardedTable

    mesh = make_mesh(options.mesh)
    sd = StableDiffusion.from_pretrained(demo.locate(options.model), dtype=options.model_dtype, mesh=mesh)
    scorer = make_scorer(sd, options, given)
    calibration = thresholds(scorer, options, given, store)
    if options.calibrate is not None:
        print(f"calibration.json in {store}")
        if options.prompts is None and not options.prompt:
            return
    carried = Carried(detection_schema(scorer.detectors, scorer.attribute), options.kept, sd.tokenizer)
    table = ShardedTable(
        store,
        carried.schema,
        identity(scorer, options, calibration),
        shard_rows=options.shard_rows,
        process=process,
        processes=processes,
    )
    source = {"model": options.model or "built-in", "prompts": options.prompts}
    table.claim(source | {"versions": versions()}, overwrite=options.overwrite)
    progress = Progress("prompt", count, partial(tell, detectors=scorer.detectors))
    padded = rows_multiple(size, mesh)

    def start(jobs: list[Prompt]) -> "Detection":
        texts = [job.text for job in fill_up(jobs, padded)]
        return scorer.start(texts, [noise_seed(text, scorer, options) for text in texts])

    def describe(batch: list[tuple[int, Prompt]], detection: "Detection | None") -> list[dict[str, Any]]:
        rows = detection_rows(batch, detection, calibration, sd.tokenizer)
        return [carried(row, prompt) for row, (_, prompt) in zip(rows, batch, strict=True)]

    work = batches(table.missing(prompts, lambda job: job.text), size, options.shard_rows, twins=table.twins)
    if not run(table, work, start, describe, progress, carried.repeat):
        print(f"stopped after {progress.rows} prompts, all of them written; the same command resumes")
        return
    judged = [name for name in scorer.detectors if calibration is not None and name in calibration.thresholds]
    summarize(table, judged, carried)


if __name__ == "__main__":
    run_command("detect", Options, main, kept="what --out holds is kept; the same command resumes")
