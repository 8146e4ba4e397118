"""Detect memorized prompts, and the tokens to blame: `python -m memattn_jax.detect`.

Writes into --out: results.jsonl with a line a prompt, in the order of the prompts: its scores, which of them lie over
their thresholds, and each token's attention and gradient. Thresholds come from a calibration; the built-in model has
one, and --calibrate fits one for another model on prompts that are known to be clean. With neither a model nor a
prompt, the built-in model looks at a memorized and a clean prompt of its own.
"""

import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memattn_jax import demo
from memattn_jax.commands import claim_output, run_command, versions
from memattn_jax.errors import InputError
from memattn_jax.options import ModelOptions, PromptOptions
from memattn_jax.prompts import as_text, read_prompts

if TYPE_CHECKING:
    from memattn_jax.calibration import Calibration
    from memattn_jax.detectors import Detection, Scorer
    from memattn_jax.pipeline import StableDiffusion


@dataclass(frozen=True, kw_only=True)
class Options(PromptOptions, ModelOptions):
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


def prompts_of(options: Options) -> list[str]:
    """The prompts to score; none where the command only calibrates."""
    if options.prompts is not None and options.prompt:
        raise InputError("give prompts as arguments or with --prompts, not both")
    if options.prompts is not None:
        return read_prompts(options.prompts, options.column)
    if options.prompt:
        return list(options.prompt)
    if options.calibrate is not None:
        return []
    if options.model is None:
        return list(demo.SHOWCASE)
    raise InputError('no prompts: give them as arguments ("a prompt" "another") or with --prompts FILE')


def given_calibration(options: Options) -> "Calibration | None":
    """The thresholds to use, before any are fitted."""
    from memattn_jax.calibration import Calibration

    if options.calibrate is not None:
        if options.calibration is not None:
            raise InputError("give --calibration to use thresholds or --calibrate to fit them, not both")
        return None
    if options.calibration is not None:
        return Calibration.load(options.calibration)
    own = options.model is None and options.dtype == "float32" and not options.per_prompt_noise
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


def score(scorer: "Scorer", prompts: list[str], options: Options) -> Iterator["Detection"]:
    """Detections, batch by batch."""
    from memattn_jax.detectors.scorer import score_batches

    start = options.seed or 0
    rows = ((as_text(prompt), (zlib.crc32(prompt.encode()) + start) % (2**32 - scorer.probes)) for prompt in prompts)
    return score_batches(scorer, rows, min(options.batch_size, len(prompts)))


def fit(scorer: "Scorer", options: Options) -> "Calibration":
    """Fits thresholds, writes them and tells them."""
    from tqdm import tqdm

    from memattn_jax.calibration import calibrate
    from memattn_jax.metrics import negatives_needed

    clean = read_prompts(str(options.calibrate), options.column)
    needed = negatives_needed(options.fpr)
    if len(clean) < needed:
        warnings.warn(
            f"{len(clean)} clean prompts cannot resolve a false-positive rate of {options.fpr:g}; "
            f"at least {needed} are needed",
            stacklevel=1,
        )
    with tqdm(total=len(clean), unit="prompt", desc="calibrating", disable=None) as bar:
        detections = []
        for detection in score(scorer, clean, options):
            detections.append(detection)
            bar.update(len(detection.prompts))
    calibration = calibrate(scorer, detections, options.fpr)
    calibration.save(options.out / "calibration.json")
    for name, threshold in calibration.thresholds.items():
        print(
            f"{name}: threshold {threshold.value:.4f}, 95 % interval {threshold.low:.4f} to {threshold.high:.4f}, "
            f"{threshold.negatives} clean prompts"
        )
    return calibration


def main(options: Options) -> None:
    """Scores what was asked for."""
    from tqdm import tqdm

    if options.batch_size < 1:
        raise InputError(f"--batch-size {options.batch_size}: at least 1 is needed")
    prompts = prompts_of(options)
    calibration = given_calibration(options)
    claim_output(options.out, options.overwrite)
    from memattn_jax.pipeline import StableDiffusion

    sd = StableDiffusion.from_pretrained(demo.locate(options.model), dtype=options.dtype)
    scorer = make_scorer(sd, options, calibration)
    if calibration is not None:
        try:
            calibration.check(scorer)
        except InputError as error:
            if options.calibration is not None:
                raise
            warnings.warn(f"no verdicts: {error}", stacklevel=1)
            calibration = None
    if options.calibrate is not None:
        calibration = fit(scorer, options)
    if not prompts:
        print(f"calibration.json in {options.out}")
        return
    from memattn_jax.calibration import settings_of
    from memattn_jax.report.detection import DetectionWriter

    settings = {"model": options.model or "built-in", "dtype": options.dtype, **settings_of(scorer)}
    writer = DetectionWriter(options.out, sd.tokenizer, settings | {"versions": versions()}, calibration)
    with tqdm(total=len(prompts), unit="prompt", disable=None) as bar:
        for detection in score(scorer, prompts, options):
            for line in writer.write(detection):
                bar.write(line)
            bar.update(len(detection.prompts))
    for name, count in writer.memorized.items():
        print(f"{name}: {count} of {len(prompts)} prompts over the threshold (*)")
    if writer.failed:
        print(f"{writer.failed} prompts have a score that is not finite; see their error in results.jsonl")
    print(f"{len(prompts)} prompts in {writer.path}")


if __name__ == "__main__":
    run_command("detect", Options, main)
