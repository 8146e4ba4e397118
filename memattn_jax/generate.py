"""Generate pictures, with the attention entropy of each prompt: `python -m memattn_jax.generate`.

Writes into --out: 00000.png, 00001.png, … with their parameters in the PNG's text, results.jsonl with a line a
picture, in the order of the prompts, and entropy.png. With neither a model nor a prompt it shows what memorization is:
the built-in model generates a memorized and a clean prompt, without and with the mitigation, and showcase.png puts
them beside what was trained on.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memattn_jax import demo
from memattn_jax.commands import claim_output, run_command, versions
from memattn_jax.errors import InputError
from memattn_jax.options import ModelOptions, PromptOptions
from memattn_jax.prompts import as_text, read_prompts

if TYPE_CHECKING:
    from tqdm import tqdm

    from memattn_jax.guard import Guard
    from memattn_jax.mitigations import AttentionMask
    from memattn_jax.pipeline import Samples, StableDiffusion
    from memattn_jax.report.results import ResultWriter


@dataclass(frozen=True, kw_only=True)
class Options(PromptOptions, ModelOptions):
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


def jobs(options: Options) -> list[tuple[str, int]]:
    """Prompt and seed of every picture."""
    if options.prompts is not None and options.prompt:
        raise InputError("give prompts as arguments or with --prompts, not both")
    if options.prompts is None and not options.prompt:
        raise InputError('no prompts: give them as arguments ("a prompt" "another") or with --prompts FILE')
    for name in ("images_per_prompt", "batch_size"):
        if getattr(options, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} {getattr(options, name)}: at least 1 is needed")
    for name in ("guidance_scale", "begin_scale"):
        if not math.isfinite(getattr(options, name)):
            raise InputError(f"--{name.replace('_', '-')} {getattr(options, name)}: a finite number is needed")
    last = options.seed + options.images_per_prompt - 1
    if options.seed < 0 or last >= 2**32:
        raise InputError(f"seeds must lie in [0, 2**32), not {options.seed} to {last}")
    prompts = read_prompts(options.prompts, options.column) if options.prompts is not None else options.prompt
    return [(as_text(prompt), options.seed + i) for prompt in prompts for i in range(options.images_per_prompt)]


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


def load(options: Options) -> "StableDiffusion":
    """The model that the options name."""
    from memattn_jax.pipeline import StableDiffusion

    return StableDiffusion.from_pretrained(demo.locate(options.model), dtype=options.dtype)


def sample_batches(
    sd: "StableDiffusion", todo: list[tuple[str, int]], options: Options
) -> Iterator[tuple[int, "Samples"]]:
    """Runs of one size, so that one program serves all; yields each with the number of its rows that count."""
    size = min(options.batch_size, len(todo))
    watch = guard(options, sd)
    for start in range(0, len(todo), size):
        batch = todo[start : start + size]
        padded = batch + batch[-1:] * (size - len(batch))
        yield (
            len(batch),
            sd.sample(
                [prompt for prompt, _ in padded],
                seeds=[seed for _, seed in padded],
                steps=options.steps,
                guidance_scale=options.guidance_scale,
                scheduler=options.scheduler,
                negative_prompts=options.negative_prompt,
                height=options.height,
                width=options.width,
                mitigation=mitigation(options),
                guard=watch,
            ),
        )


def settings(options: Options) -> dict[str, Any]:
    """The options that decide a picture besides its prompt and seed."""
    names = ["negative_prompt", "steps", "guidance_scale", "scheduler", "height", "width", "dtype"]
    names += ["mitigation"]
    names += ["guard"]
    if options.mitigation != "none" or options.guard != "none":
        names += ["begin_scale", "mask"]
    return {"model": options.model or "built-in"} | {name: getattr(options, name) for name in names}


def write_pictures(
    sd: "StableDiffusion", options: Options, writer: "ResultWriter", bar: "tqdm"
) -> Iterator[tuple["Samples", int]]:
    """Samples batch by batch, writes each as soon as it is there, and yields each picture's batch and row in it."""
    for count, run in sample_batches(sd, jobs(options), options):
        for line in writer.write(run, count, sd.tokenizer, settings(options)):
            bar.write(line)
        bar.update(count)
        yield from ((run, row) for row in range(count))


def show_memorization(sd: "StableDiffusion", pictures: list[list[tuple["Samples", int]]], path: Path) -> None:
    """Draws the pictures of the built-in model's own prompts, without and with the mitigation."""
    from memattn_jax.report.showcase import plot_showcase, tell

    memorized = demo.memorized_pictures()
    titles = dict(zip(demo.SHOWCASE, ("memorized prompt", "clean prompt"), strict=True))
    stories = {
        run.prompts[row]: tell(titles[run.prompts[row]], run, mitigated, row, sd.tokenizer, memorized)
        for (run, row), (mitigated, _) in reversed(list(zip(*pictures, strict=True)))  # the first seed stays
    }
    plot_showcase(path, [stories[prompt] for prompt in demo.SHOWCASE])
    for story in (stories[prompt] for prompt in demo.SHOWCASE):
        before, after = story.correlations
        print(f"{story.title}: correlation with the nearest memorized picture {before:.2f}, mitigated {after:.2f}")


def main(options: Options) -> None:
    """Generates what was asked for, or where nothing was, shows what memorization is."""
    showcase = options.model is None and options.prompts is None and not options.prompt
    if showcase:
        options = replace(options, prompt=demo.SHOWCASE)
    total = len(jobs(options))
    claim_output(options.out, options.overwrite)
    sd = load(options)
    from tqdm import tqdm

    from memattn_jax.report.results import ResultWriter

    runs = [options]
    if showcase:
        mitigated = replace(options, mitigation="attention_mask", mask="summary")  # as the paper describes it
        runs = [replace(options, mitigation="none"), mitigated]
    writer = ResultWriter(options.out, versions())
    with tqdm(total=len(runs) * total, unit="picture", disable=None) as bar:  # None: only on a terminal
        written = [write_pictures(sd, run, writer, bar) for run in runs]
        if showcase:
            show_memorization(sd, [list(pictures) for pictures in written], options.out / "showcase.png")
        for pictures in written:
            for _ in pictures:
                pass
    writer.plot()
    made = f"{len(runs) * total} pictures, results.jsonl and entropy.png"
    print(f"{made}{', showcase.png' if showcase else ''} in {options.out}")


if __name__ == "__main__":
    run_command("generate", Options, main)
