"""Generate images and measure the attention entropy of their prompts: `memattn generate`.

Writes to --out: the images, 00000.png, 00001.png, …, each with its parameters in the PNG's text; a table in Parquet
files with one row per image, in the order of the prompts; entropy.png; and manifest.json with the settings.
results.jsonl repeats up to 10,000 rows. An interrupted run resumes when the same command is run again. Without a model
and prompts, the command shows what memorization is: the built-in model generates images for a memorized and a clean
prompt, without and with the mitigation, and showcase.png compares them to the training images.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

from memattn_jax import demo
from memattn_jax.commands.command import FORMAT, note, run_command
from memattn_jax.commands.generate_options import Options
from memattn_jax.commands.mitigating import describe, make_mitigation
from memattn_jax.prompts import Prompt, as_text, stream_prompts
from memattn_jax.prompts.record import valid_text
from memattn_jax.runs.versions import versions
from memattn_jax.text import counted

if TYPE_CHECKING:
    from memattn_jax.detectors.calibration.calibration import Calibration
    from memattn_jax.mitigations import Mitigation
    from memattn_jax.mitigations.guard import Guard
    from memattn_jax.pipeline import StableDiffusion
    from memattn_jax.report.gallery import ImageJob, Recipe

RUN = ("steps", "guidance_scale", "scheduler", "height", "width")  # options that are a run's settings


def images_of(options: Options) -> tuple[Iterator["ImageJob"], Callable[[], int | None]]:
    """The images to generate, and a function that returns their number."""
    from memattn_jax.report.gallery import ImageJob

    prompts: Iterator[Prompt]
    count: Callable[[], int | None]
    if options.prompts is not None:
        prompts = records = stream_prompts(options.prompts, options.column, options.kept, note)
        count = lambda: (total := records.total()) and total * options.images_per_prompt  # noqa: E731
    else:
        prompts = iter([Prompt(as_text(prompt)) for prompt in options.prompt])
        count = lambda: len(options.prompt) * options.images_per_prompt  # noqa: E731
    own = range(options.seed, options.seed + options.images_per_prompt)
    images = (
        ImageJob(prompt.text, seed, prompt.error, place=prompt.place, kept=prompt.kept)
        for prompt in prompts
        for seed in own
    )
    return images, count


def mitigation(options: Options) -> "Mitigation | None":
    """The mitigation that the options name, not fitted yet.

    Raises:
      InputError: fields that are wrong, or without which it cannot be fitted.
    """
    if options.mitigating == "none":
        return None
    made = make_mitigation(options.mitigating, options.mitigation_options)
    made.check()
    return made


def fitted(options: Options, sd: "StableDiffusion") -> "Mitigation | None":
    """The same, ready for this model."""
    made = mitigation(options)
    settings = {"negative_prompts": options.negative_prompt} | {name: getattr(options, name) for name in RUN}
    return None if made is None else made.fit(sd, **settings)


def given_calibration(options: Options) -> "Calibration | None":
    """The calibration that the guard's threshold comes from; None without a guard."""
    if options.guard == "none":
        return None
    from memattn_jax.detectors.calibration import load_calibration

    return load_calibration(options.calibration or demo.CALIBRATION)


def guard(options: Options, calibration: "Calibration | None", sd: "StableDiffusion") -> "Guard | None":
    """The guard that the options name."""
    if calibration is None:
        return None
    from memattn_jax.mitigations.guard import Guard

    calibration.check_model(sd)
    made = Guard.from_calibration(calibration, options.guard, fitted(options, sd))
    made.check_size(sd, sd.latent_shape(options.height, options.width))
    return made


def settings(options: Options) -> dict[str, Any]:
    """The options that an image depends on besides its prompt and seed."""
    names = ["negative_prompt", "steps", "guidance_scale", "scheduler", "height", "width", "dtype"]
    names += ["mitigation", "guard"]
    made_with = mitigation(options)
    own = {} if made_with is None else {"mitigation_options": describe(made_with)}
    return {"model": options.model_name} | {name: getattr(options, name) for name in names} | own


def site_of(sd: "StableDiffusion") -> dict[str, str]:
    """The layer that metric E reads, an entry of the recorded settings."""
    return {"entropy_site": sd.site_of_entropy()}


def recipe(options: Options, watch: "Guard | None", sd: "StableDiffusion") -> "Recipe":
    """How images are made with these options."""
    from memattn_jax.report.gallery import Recipe

    arguments = {name: getattr(options, name) for name in RUN}
    arguments |= {"negative_prompts": options.negative_prompt, "guard": watch}
    arguments["mitigation"] = fitted(options, sd) if watch is None else None
    return Recipe(arguments, settings(options) | site_of(sd))


def identity(sd: "StableDiffusion", runs: list[Options], watch: "Guard | None") -> dict[str, Any]:
    """Everything that the images depend on besides their prompts."""
    limit = None if watch is None else watch.threshold
    same = {"seed": runs[0].seed, "images_per_prompt": runs[0].images_per_prompt, "guard_threshold": limit}
    made_with = {"mitigated " * (i > 0) + "settings": settings(run) | site_of(sd) for i, run in enumerate(runs)}
    for part in made_with.values():
        del part["model"]  # the fingerprint identifies it, wherever it is stored
    table: dict[str, Any] = {"command": "generate", "format": FORMAT, "keep": list(runs[0].kept)}
    return table | {"model": sd.fingerprint(pictures=True), "pictures": same, **made_with}


def main(options: Options) -> None:
    """Generates the images, or without a model and prompts shows what memorization is."""
    from memattn_jax.runs.progress import Progress
    from memattn_jax.runs.run import batch_size, batches, run
    from memattn_jax.sharding.placement import make_mesh, rows_multiple
    from memattn_jax.sharding.processes import start_processes
    from memattn_jax.storage import Store

    runs, showcase = [options], options.showcase
    if showcase:
        plain = replace(options, prompt=demo.SHOWCASE, mitigation="none")
        masked = replace(plain, mitigation="attention_mask", mitigation_options=("mask=summary",))  # as in the paper
        runs = [plain, masked]
    images, count = images_of(runs[0])
    size, images = batch_size(images, options.batch_size)
    if showcase:
        shown = list(images)
        images = iter(shown + [image._replace(recipe=1) for image in shown])
        count = lambda: len(shown) * len(runs)  # noqa: E731
    given = given_calibration(options)
    for each in runs:
        mitigation(each)  # so that a wrong option is refused before a model is loaded
    process, processes = start_processes(
        options.coordinator, options.process_id, options.num_processes, options.distributed
    )
    store = Store(options.out, process)
    from memattn_jax.pipeline import StableDiffusion
    from memattn_jax.report.carried import Carried
    from memattn_jax.report.gallery import Gallery
    from memattn_jax.report.results import IMAGE_SCHEMA, format_row, plot_rows, write_json_lines
    from memattn_jax.runs.table import ShardedTable

    mesh = make_mesh(options.mesh)
    options.check_schedule(options.scheduler, options.steps)
    sd = StableDiffusion.from_pretrained(
        demo.locate(options.model), dtype=options.model_dtype, mesh=mesh, **options.source
    )
    runs = [replace(each, dtype=sd.dtype) for each in runs]  # the default differs between machines
    watch = guard(options, given, sd)
    carried = Carried(IMAGE_SCHEMA, options.kept, sd.tokenizer)
    table = ShardedTable(
        store,
        carried.schema,
        identity(sd, runs, watch),
        shard_rows=options.shard_rows,
        process=process,
        processes=processes,
        row_files="png",
    )
    prompts = options.prompts and valid_text(options.prompts)
    source = {"model": options.model_name, "prompts": prompts, "versions": versions()}
    table.claim(source, overwrite=options.overwrite)
    if showcase:
        table.claim(source, overwrite=True)  # the showcase needs all of its images in memory
    progress = Progress("image", count, format_row)
    recipes = [recipe(each, watch, sd) for each in runs]
    if showcase:
        for one in recipes:
            one.arguments["taps"] = "heatmaps"
    gallery = Gallery(sd, recipes, rows_multiple(size, mesh), table, carried, showcase)
    lacking = table.missing(images, lambda job: job.same, carried.copies)
    work = batches(lacking, size, options.shard_rows, lambda job: job.recipe, table.twins)
    if not run(table, work, gallery.start, gallery.describe, progress, gallery.repeat):
        print(f"stopped after {counted(progress.rows, 'image')}, all of them written; the same command resumes")
        return
    band = demo.clean_entropy(settings(runs[0]))
    if gallery.made:
        from memattn_jax.report.showcase import show_memorization

        show_memorization(sd.tokenizer, gallery.made, store, band)
    plot_rows(store, table.rows(["row", "prompt", "seed", "entropy", "mitigated"]), band)
    made, total = gallery.count()
    print(f"E reads {site_of(sd)['entropy_site']}")
    repeated = ", results.jsonl" if write_json_lines(table, total) else ""
    if options.report:
        from memattn_jax.report.html.runs import write_images_page

        limit = None if watch is None else watch.threshold
        print(write_images_page(table, made, settings(runs[0]) | site_of(sd), limit))
    written = f"Parquet files{repeated}{', showcase.png' if showcase else ''} and entropy.png"
    print(f"{counted(made, 'image')}, {written} in {store}")


def cli(*, alone: bool = False) -> NoReturn:
    """Runs `memattn generate`; for `alone` see `run_command`."""
    run_command("generate", Options, main, kept="what --out holds is kept; the same command resumes", alone=alone)
