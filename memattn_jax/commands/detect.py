"""Detect memorized prompts and the tokens that stand out: `memattn detect`.

Writes to --out a table in Parquet files, one row per prompt, in the order of the prompts: scores, joint p-value,
verdict, and each token's attention and gradient; manifest.json holds the settings, and results.jsonl repeats up to
10,000 rows. An interrupted run resumes when the same command is run again. Verdicts come from a calibration, the scores
of clean prompts; the built-in model has one, and --calibrate creates one. Without a model and prompts, the built-in
model scores two prompts of its own.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import NoReturn

from memattn_jax import demo
from memattn_jax.commands.calibrating import CALIBRATION
from memattn_jax.commands.command import note, run_command
from memattn_jax.commands.detect_options import Options
from memattn_jax.commands.scoring import Log, check_schedule, clean_prompts, given_calibration, score_log
from memattn_jax.errors import InputError
from memattn_jax.prompts import Prompt, as_text, stream_prompts


def prompts_of(options: Options) -> tuple[Iterator[Prompt], Callable[[], int | None]]:
    """The prompts to score, none if the command only calibrates, and a function that returns their number."""
    given = options.prompt
    if options.prompts is not None:
        records = stream_prompts(options.prompts, options.column, options.kept, note)
        return records, records.total
    if not given and options.calibrate is None:
        given = demo.SHOWCASE
    return iter([Prompt(as_text(prompt)) for prompt in given]), lambda: len(given)


def read_log(options: Options) -> Log:
    """The prompts that the options name; raises InputError where there are none."""
    from memattn_jax.runs.run import batch_size

    prompts, count = prompts_of(options)
    size, prompts = batch_size(prompts, options.batch_size)
    return Log(prompts, size, count)


def main(options: Options) -> None:
    """Scores the prompts and writes the table."""
    from memattn_jax.sharding.placement import make_mesh
    from memattn_jax.sharding.processes import start_processes
    from memattn_jax.storage import Store

    log = read_log(options)
    given, clean = given_calibration(options), clean_prompts(options)
    part = start_processes(options.coordinator, options.process_id, options.num_processes, options.distributed)
    store = Store(options.out, part[0])
    scored = log if options.has_prompts or clean is None else None
    if scored is None and not options.overwrite and store.read(CALIBRATION) is not None:
        raise InputError(f"--out {store}: holds {CALIBRATION} already; choose another folder or add --overwrite")
    from memattn_jax.pipeline import StableDiffusion
    from memattn_jax.report.findings import summarize
    from memattn_jax.runs.refusal import check_early
    from memattn_jax.runs.table import MANIFEST

    mesh = make_mesh(None if options.engine == "ray" else options.mesh)  # Ray's actors have the devices
    check_schedule(options, given)
    sd = StableDiffusion.from_pretrained(
        demo.locate(options.model), dtype=options.model_dtype, mesh=mesh, **options.source
    )
    if clean is not None and scored is not None and not options.overwrite:  # before hours of calibration
        known = {"command": "detect", "keep": list(options.kept), "model": sd.fingerprint()}
        check_early(str(store), store.read(MANIFEST), known)
    done = score_log(sd, options, scored, given, store, part, clean)
    if done is not None:
        kind = None if done.calibration is None else done.calibration.kind
        detectors = tuple(done.scorer.detectors)
        settle, level = summarize(done.table, done.found, kind, done.carried)
        if options.report:
            from memattn_jax.report.html.runs import Judged, write_detection_page

            about = {"model": options.model_name} | done.table.identity["settings"]
            print(write_detection_page(done.table, detectors, Judged(done.rule, level, settle), about))
        else:
            with suppress(FileNotFoundError):  # of an earlier run, with other rows or verdicts
                store.remove("report.html")


def cli(*, alone: bool = False) -> NoReturn:
    """Runs `memattn detect`; for `alone` see `run_command`."""
    run_command("detect", Options, main, kept="what --out holds is kept; the same command resumes", alone=alone)
