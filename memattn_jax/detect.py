"""Detect memorized prompts, and the tokens to blame: `python -m memattn_jax.detect`.

Writes into --out a table in Parquet files, a row a prompt, in the order of the prompts: its scores, the verdict, and
each token's attention and gradient; manifest.json says what they were made with, and results.jsonl repeats up to 10,000
rows. The same command again goes on where it stopped, whatever ended it. Thresholds come from a calibration; the
built-in model has one, and --calibrate fits one for another model on prompts that are known to be clean. With neither a
model nor a prompt, the built-in model looks at a memorized and a clean prompt of its own.
"""

import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memattn_jax import demo
from memattn_jax.commands import run_command, versions
from memattn_jax.errors import InputError
from memattn_jax.options import ModelOptions, PromptOptions, RunOptions
from memattn_jax.prompts import Prompt, as_text, count_prompts, read_prompts, stream_prompts

if TYPE_CHECKING:
    from memattn_jax.calibration import Calibration
    from memattn_jax.detectors import Detection, Scorer
    from memattn_jax.pipeline import StableDiffusion
    from memattn_jax.runs.store import Store
    from memattn_jax.runs.table import ShardedTable


@dataclass(frozen=True, kw_only=True)
class Options(PromptOptions, RunOptions, ModelOptions):
    """Score prompts for memorization, and say which tokens are to blame."""

    detectors: str = "entropy_e,noise_norm"
    """Names with commas between, or all."""
    explain: bool = True
    """Say which tokens are to blame, at a forward and a backward pass a prompt."""
    calibration: Path | None = None
    """Thresholds, from --calibrate; the built-in model has its own."""
    calibrate: Path | None = None
    """File of clean prompts to fit thresholds on; they are written to calibration.json in --out, and used."""
    fpr: float = 0.01
    """--calibrate: the share of clean prompts that may lie over a threshold."""
    seed: int | None = None
    """Of the noise that prompts are seen through; by default the calibration's, or 0."""
    per_prompt_noise: bool = False
    """Show each prompt a noise of its own, drawn from its text and the seed, instead of the same to all."""
    probes: int | None = None
    """Noises to average over; by default the calibration's, or 1."""
    steps: int | None = None
    """Sampling steps; first-step detectors look at the first of them. By default the calibration's, or 50."""
    guidance_scale: float | None = None
    """Of detectors that follow a sampling run; by default the calibration's, or 7.5."""
    site: str | None = None
    """Cross-attention layer that entropy_e reads; by default the calibration's, or the paper's, the fourth."""
    noise_norm_steps: str | None = None
    """Steps that noise_norm_steps averages over, from 0, with commas between; by default all."""
    batch_size: int = 16
    """Prompts scored at once."""


def prompts_of(options: Options) -> tuple[Iterator[Prompt], Callable[[], int] | None]:
    """The prompts to score, none where the command only calibrates, and how to count them."""
    given = options.prompt
    if options.prompts is not None:
        if given:
            raise InputError("give prompts as arguments or with --prompts, not both")
        count = partial(count_prompts, options.prompts, options.column)
        return stream_prompts(options.prompts, options.column), None if options.prompts == "-" else count
    if not given and options.calibrate is None:
        if options.model is not None:
            raise InputError('no prompts: give them as arguments ("a prompt" "another") or with --prompts FILE')
        given = demo.SHOWCASE
    return iter([Prompt(as_text(prompt)) for prompt in given]), lambda: len(given)


def given_calibration(options: Options) -> "Calibration | None":
    """The thresholds to use, before any are fitted."""
    from memattn_jax.calibration import Calibration

    if options.calibrate is not None:
        if options.calibration is not None:
            raise InputError("give --calibration to use thresholds or --calibrate to fit them, not both")
        return None
    if options.calibration is not None:
        return Calibration.load(options.calibration)
    own = options.model is None and options.model_dtype == "float32" and not options.per_prompt_noise
    return Calibration.load(demo.CALIBRATION) if own else None


def make_scorer(sd: "StableDiffusion", options: Options, calibration: "Calibration | None") -> "Scorer":
    """The detectors, with what the options say, else the calibration, else the papers."""
    from memattn_jax.detectors import DETECTORS, Scorer

    names = tuple(DETECTORS) if options.detectors == "all" else tuple(options.detectors.split(","))
    settings: dict[str, Any] = dict(calibration.settings) if calibration is not None else {}
    for name in ("seed", "probes", "steps", "guidance_scale", "site"):
        if getattr(options, name) is not None:
            settings[name] = getattr(options, name)
    if options.noise_norm_steps is not None:
        try:
            settings["noise_norm_steps"] = [int(step) for step in options.noise_norm_steps.split(",")]
        except ValueError:
            raise InputError(f"--noise-norm-steps {options.noise_norm_steps}: numbers as 0,1,2 are needed") from None
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


def summarize(table: "ShardedTable", judged: list[str]) -> None:
    """Tells of all rows, and repeats them in results.jsonl where they are few and no other process adds to them."""
    from memattn_jax.report.results import write_json_lines

    over: Counter[str] = Counter()
    rows = failed = 0
    for row in table.rows(["over", "error"]):
        rows += 1
        failed += row["error"] is not None
        over.update(row["over"] or ())
    for name in judged:
        print(f"{name}: {over[name]} of {rows} prompts over the threshold (*)")
    if failed:
        print(f"{failed} prompts lack a score; the column error says why")
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

    options.check()
    if options.batch_size < 1:
        raise InputError(f"--batch-size {options.batch_size}: at least 1 is needed")
    prompts, count = prompts_of(options)
    size, prompts = batch_size(prompts, options.batch_size)
    given = given_calibration(options)
    process, processes = start_processes(
        options.coordinator, options.process_id, options.num_processes, options.distributed
    )
    store = Store(options.out, process)
    from memattn_jax.pipeline import StableDiffusion
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
    table = ShardedTable(
        store,
        detection_schema(scorer.detectors, scorer.attribute),
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
        return detection_rows(batch, detection, calibration, sd.tokenizer)

    work = batches(table.missing(prompts), size, options.shard_rows)
    if not run(table, work, start, describe, progress):
        print(f"stopped after {progress.rows} prompts, all of them written; the same command goes on from there")
        return
    judged = [name for name in scorer.detectors if calibration is not None and name in calibration.thresholds]
    summarize(table, judged)


if __name__ == "__main__":
    run_command("detect", Options, main)
