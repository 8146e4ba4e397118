"""Generate pictures, with the attention entropy of each prompt: `python -m memattn_jax.generate`.

Writes into --out: 00000.png, 00001.png, … with their parameters in the PNG's text, a table in Parquet files with a row
a picture, in the order of the prompts, and entropy.png; manifest.json says what they were made with, and results.jsonl
repeats up to 10,000 rows. The same command again goes on where it stopped, whatever ended it. With neither a model nor
a prompt it shows what memorization is: the built-in model generates a memorized and a clean prompt, without and with
the mitigation, and showcase.png puts them beside what was trained on.
"""

import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memattn_jax import demo
from memattn_jax.commands import run_command, versions
from memattn_jax.errors import InputError
from memattn_jax.options import ModelOptions, PromptOptions, RunOptions
from memattn_jax.prompts import Prompt, as_text, count_prompts, stream_prompts

if TYPE_CHECKING:
    from memattn_jax.guard import Guard
    from memattn_jax.mitigations import AttentionMask
    from memattn_jax.pipeline import Samples, StableDiffusion
    from memattn_jax.report.gallery import Picture, Recipe
    from memattn_jax.runs.store import Store


@dataclass(frozen=True, kw_only=True)
class Options(PromptOptions, RunOptions, ModelOptions):
    """Generate pictures with Stable Diffusion, and measure how concentrated each prompt's attention is."""

    negative_prompt: str = ""
    """What the pictures should not show."""
    steps: int = 50
    """Sampling steps."""
    guidance_scale: float = 7.5
    """Classifier-free guidance; 1 or less turns it off."""
    scheduler: str = "ddim"
    """ddim, pndm, euler or dpm-solver++."""
    seed: int = 0
    """Seed of every prompt's first picture; its next ones take the next seeds."""
    images_per_prompt: int = 1
    """Pictures for each prompt."""
    batch_size: int = 4
    """Pictures sampled at once."""
    height: int | None = None
    """Pixels; by default what the model was trained on."""
    width: int | None = None
    """Pixels; by default what the model was trained on."""
    mitigation: str = "none"
    """none, or attention_mask: mask tokens and strengthen the begin token (Ren et al., ECCV 2024)."""
    begin_scale: float = 1.25
    """attention_mask: multiplies the begin token's attention logit."""
    mask: str = "padding"
    """attention_mask: padding, summary (the end token too) or none."""
    guard: str = "none"
    """none, or a first-step detector, as noise_norm: mitigate only the pictures whose score lies over the calibration's
    threshold, by the attention_mask that --begin-scale and --mask describe."""
    calibration: Path | None = None
    """--guard: thresholds, from detect --calibrate; the built-in model has its own."""


def check(options: Options) -> None:
    """Raises InputError for a number out of range."""
    options.check()
    for name in ("images_per_prompt", "batch_size"):
        if getattr(options, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} {getattr(options, name)}: at least 1 is needed")
    for name in ("guidance_scale", "begin_scale"):
        if not math.isfinite(getattr(options, name)):
            raise InputError(f"--{name.replace('_', '-')} {getattr(options, name)}: a finite number is needed")
    last = options.seed + options.images_per_prompt - 1
    if options.seed < 0 or last >= 2**32:
        raise InputError(f"seeds must lie in [0, 2**32), not {options.seed} to {last}")


def pictures_of(options: Options) -> tuple[Iterator["Picture"], Callable[[], int] | None]:
    """The pictures to make, and how to count them."""
    from memattn_jax.report.gallery import Picture

    prompts: Iterator[Prompt]
    count: Callable[[], int] | None
    if options.prompts is not None and options.prompt:
        raise InputError("give prompts as arguments or with --prompts, not both")
    if options.prompts is not None:
        source, column = options.prompts, options.column
        prompts = stream_prompts(source, column)
        count = None if source == "-" else lambda: count_prompts(source, column) * options.images_per_prompt
    elif options.prompt:
        prompts = iter([Prompt(as_text(prompt)) for prompt in options.prompt])
        count = lambda: len(options.prompt) * options.images_per_prompt  # noqa: E731
    else:
        raise InputError('no prompts: give them as arguments ("a prompt" "another") or with --prompts FILE')
    seeds = range(options.seed, options.seed + options.images_per_prompt)
    return (Picture(prompt.text, seed, prompt.error) for prompt in prompts for seed in seeds), count


def mitigation(options: Options) -> "AttentionMask | None":
    """The mitigation that the options name."""
    from memattn_jax.mitigations import MITIGATIONS

    if options.mitigation == "none":
        return None
    if options.mitigation not in MITIGATIONS:
        names = ", ".join(["none", *MITIGATIONS])
        raise InputError(f"no mitigation {options.mitigation!r}; there are {names}")
    mask: Any = None if options.mask == "none" else options.mask
    return MITIGATIONS[options.mitigation](begin_scale=options.begin_scale, mask=mask)


def guard(options: Options, sd: "StableDiffusion") -> "Guard | None":
    """The guard that the options name."""
    if options.guard == "none":
        return None
    from memattn_jax.calibration import Calibration
    from memattn_jax.guard import Guard

    if options.mitigation != "none":
        raise InputError("--guard decides who is mitigated; leave --mitigation away")
    path = options.calibration or (demo.CALIBRATION if options.model is None else None)
    if path is None:
        raise InputError("--guard needs --calibration FILE; detect --calibrate CLEAN_PROMPTS writes one")
    calibration = Calibration.load(path)
    calibration.check_model(sd)
    mitigated = mitigation(replace(options, mitigation="attention_mask"))
    return Guard.from_calibration(calibration, options.guard, mitigated)


def settings(options: Options) -> dict[str, Any]:
    """The options that decide a picture besides its prompt and seed."""
    names = ["negative_prompt", "steps", "guidance_scale", "scheduler", "height", "width", "dtype"]
    names += ["mitigation", "guard"]
    if options.mitigation != "none" or options.guard != "none":
        names += ["begin_scale", "mask"]
    return {"model": options.model or "built-in"} | {name: getattr(options, name) for name in names}


def recipe(options: Options, watch: "Guard | None") -> "Recipe":
    """How the options have pictures made."""
    from memattn_jax.report.gallery import Recipe

    names = ("steps", "guidance_scale", "scheduler", "height", "width")
    arguments = {name: getattr(options, name) for name in names}
    arguments |= {"negative_prompts": options.negative_prompt, "mitigation": mitigation(options), "guard": watch}
    return Recipe(arguments, settings(options))


def identity(sd: "StableDiffusion", runs: list[Options], watch: "Guard | None") -> dict[str, Any]:
    """All that the pictures depend on besides their prompts."""
    from memattn_jax.calibration import fingerprint

    limit = None if watch is None else watch.threshold
    same = {"seed": runs[0].seed, "images_per_prompt": runs[0].images_per_prompt, "guard_threshold": limit}
    made_with = {"mitigated " * (i > 0) + "settings": settings(run) for i, run in enumerate(runs)}
    for part in made_with.values():
        del part["model"]  # the fingerprint tells, wherever it lies
    return {"command": "generate", "model": fingerprint(sd, pictures=True), "pictures": same, **made_with}


def show_memorization(sd: "StableDiffusion", made: list[tuple[int, "Samples", int]], store: "Store") -> None:
    """Draws the pictures of the built-in model's own prompts, without and with the mitigation."""
    from memattn_jax.report.showcase import plot_showcase, tell

    memorized = demo.memorized_pictures()
    titles = dict(zip(demo.SHOWCASE, ("memorized prompt", "clean prompt"), strict=True))
    plain = [(run, place) for mitigated, run, place in made if not mitigated]
    masked = [run for mitigated, run, _ in made if mitigated]
    stories = {
        run.prompts[place]: tell(titles[run.prompts[place]], run, other, place, sd.tokenizer, memorized)
        for (run, place), other in reversed(list(zip(plain, masked, strict=True)))  # the first seed stays
    }
    sink = io.BytesIO()
    plot_showcase(sink, [stories[prompt] for prompt in demo.SHOWCASE])
    store.write("showcase.png", sink.getvalue())
    for story in (stories[prompt] for prompt in demo.SHOWCASE):
        before, after = story.correlations
        print(f"{story.title}: correlation with the nearest memorized picture {before:.2f}, mitigated {after:.2f}")


def main(options: Options) -> None:
    """Generates what was asked for, or where nothing was, shows what memorization is."""
    from memattn_jax.parallel import make_mesh, rows_multiple, start_processes
    from memattn_jax.runs.progress import Progress
    from memattn_jax.runs.run import batch_size, batches, run
    from memattn_jax.runs.store import Store

    check(options)
    showcase = options.model is None and options.prompts is None and not options.prompt
    runs = [options]
    if showcase:
        plain = replace(options, prompt=demo.SHOWCASE, mitigation="none")
        runs = [plain, replace(plain, mitigation="attention_mask", mask="summary")]  # as the paper describes it
    pictures, count = pictures_of(runs[0])
    size, pictures = batch_size(pictures, options.batch_size)
    if showcase:
        shown = list(pictures)
        pictures = iter(shown + [picture._replace(recipe=1) for picture in shown])
        count = None
    process, processes = start_processes(
        options.coordinator, options.process_id, options.num_processes, options.distributed
    )
    store = Store(options.out, process)
    from memattn_jax.pipeline import StableDiffusion
    from memattn_jax.report.gallery import Gallery
    from memattn_jax.report.results import PICTURE_SCHEMA, plot_rows, tell, write_json_lines
    from memattn_jax.runs.table import ShardedTable

    mesh = make_mesh(options.mesh)
    sd = StableDiffusion.from_pretrained(demo.locate(options.model), dtype=options.model_dtype, mesh=mesh)
    runs = [replace(each, dtype=sd.dtype) for each in runs]  # the default differs between machines
    watch = guard(options, sd)
    table = ShardedTable(
        store,
        PICTURE_SCHEMA,
        identity(sd, runs, watch),
        shard_rows=options.shard_rows,
        process=process,
        processes=processes,
        row_files="png",
    )
    source = {"model": options.model or "built-in", "prompts": options.prompts, "versions": versions()}
    table.claim(source, overwrite=options.overwrite)
    if showcase:
        table.claim(source, overwrite=True)  # the story needs all of its pictures at hand
    progress = Progress("picture", count, tell)
    gallery = Gallery(sd, [recipe(each, watch) for each in runs], rows_multiple(size, mesh), table, keep=showcase)
    work = batches(table.missing(pictures), size, options.shard_rows, lambda job: job.recipe)
    if not run(table, work, gallery.start, gallery.describe, progress):
        print(f"stopped after {progress.rows} pictures, all of them written; the same command goes on from there")
        return
    if gallery.made:
        show_memorization(sd, gallery.made, store)
    plot_rows(store, table.rows(["prompt", "seed", "entropy"]))
    total = sum(1 for _ in table.rows(["row"]))
    repeated = ", results.jsonl" if processes == 1 and write_json_lines(table, total) else ""
    print(f"{total} pictures, Parquet files{repeated}{', showcase.png' if showcase else ''} and entropy.png in {store}")


if __name__ == "__main__":
    run_command("generate", Options, main)
