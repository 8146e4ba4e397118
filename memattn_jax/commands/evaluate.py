"""Measure how well detectors separate memorized from clean prompts, and at what cost: `memattn evaluate`.

With --mitigations, measure instead what mitigations do; see `evaluating_mitigations.py`.

Writes to --out: evaluation.json; evaluation.md with the same table; roc.png; and scores.csv with each prompt's scores.
Without --memorized and --clean, it evaluates the built-in model on its own reported prompts: memorized ones
against control and unseen ones, which have the same grammar, length and kind of words. `text_baseline`, which looks at
characters alone, is always in the table: where its AUROC is high, the two sets of prompts differ in kind, and the other
rows may measure that difference instead of memorization.
"""

import csv
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from memattn_jax import demo
from memattn_jax.commands.command import run_command
from memattn_jax.commands.evaluate_options import Options
from memattn_jax.commands.options import names_of
from memattn_jax.errors import InputError
from memattn_jax.prompts import read_prompts
from memattn_jax.registries import DETECTORS
from memattn_jax.runs.versions import versions

if TYPE_CHECKING:
    import numpy as np

    from memattn_jax.detectors import Detection, Scorer
    from memattn_jax.pipeline import StableDiffusion

BASELINE = "text_baseline"


def prompt_sets(options: Options) -> tuple[list[str], list[str]]:
    """Memorized and clean prompts."""
    if options.memorized is None or options.clean is None:
        return demo.prompts("memorized", "report"), demo.prompts("control", "report") + demo.prompts("unseen", "report")
    return read_prompts(options.memorized, options.column), read_prompts(options.clean, options.column)


def detector_names(options: Options) -> tuple[str, ...]:
    """The detectors to evaluate; the baseline is always among them."""
    names = names_of(options.detectors, tuple(DETECTORS), "--detectors", "detector")
    return names if BASELINE in names else (*names, BASELINE)


def make_scorer(sd: "StableDiffusion", options: Options) -> "Scorer":
    """The scorer, in which a calibration has fitted the detectors that compare to clean prompts.

    With --detectors all, detectors without such a calibration are left out with a warning.

    Raises:
      InputError: a detector was named, or --calibration given, and there is no fit with these settings.
    """
    from memattn_jax.detectors import Scorer
    from memattn_jax.detectors.calibration import load_calibration
    from memattn_jax.detectors.protocol import is_fitted
    from memattn_jax.detectors.scorer import named_detectors

    detectors = dict(named_detectors(detector_names(options), site=options.site))
    unfitted = [name for name, one in detectors.items() if not is_fitted(one)]
    ready = {name: one for name, one in detectors.items() if name not in unfitted}
    scorer = Scorer(sd, ready, options.seed, options.probes, options.steps, options.guidance_scale, options.site)
    if not unfitted:
        return scorer
    path = options.calibration or (demo.CALIBRATION if options.built_in else None)
    try:
        if path is None:
            raise InputError(
                f"{unfitted[0]} needs --calibration FILE with clean sampling runs, from `detect --calibrate`"
            )
        calibration = load_calibration(path)
        calibration.check(scorer)
        if missing := [name for name in unfitted if name not in calibration.fits]:
            raise InputError(
                f"{path}: no clean sampling runs; create it with `detect --calibrate` and --detectors {missing[0]}"
            )
        return replace(scorer, detectors=calibration.fitted(detectors))
    except InputError as error:
        if options.calibration is not None or options.detectors != "all":
            raise
        warnings.warn(f"left out {', '.join(unfitted)}: {error}", stacklevel=1)
        return scorer


def seconds_per_prompt(scorer: "Scorer", prompts: Sequence[str]) -> float:
    """Seconds per prompt of one batch, without compilation and the work that the empty prompt takes once."""
    scorer(prompts)
    start = time.perf_counter()
    scorer(prompts)
    return (time.perf_counter() - start) / len(prompts)


def write_scores(path: Path, detection: "Detection", labels: "np.ndarray") -> None:
    """Writes one line per prompt: its text, its label and its scores."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "memorized", *detection.scores])
        writer.writerows(zip(detection.prompts, labels.astype(int), *detection.scores.values(), strict=True))


def main(options: Options) -> None:
    """Evaluates detectors, or with --mitigations these."""
    memorized, clean = prompt_sets(options)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.mitigations is None:
        evaluate_detectors(options, memorized, clean)
    else:
        from memattn_jax.commands.evaluating_mitigations import evaluate_mitigations

        evaluate_mitigations(options, memorized, clean)


def evaluate_detectors(options: Options, memorized: list[str], clean: list[str]) -> None:
    """Scores both sets with all detectors together, then times each detector alone."""
    import numpy as np
    from tqdm import tqdm

    from memattn_jax.detectors.calibration.calibration import settings_of
    from memattn_jax.detectors.cost import forwards_per_prompt
    from memattn_jax.detectors.detection import concatenate
    from memattn_jax.detectors.scorer import score_batches
    from memattn_jax.evaluation.metrics import negatives_needed
    from memattn_jax.pipeline import StableDiffusion
    from memattn_jax.report.evaluation import Evaluated, unresolved, write_evaluation
    from memattn_jax.sharding.placement import make_mesh, rows_multiple

    mesh = make_mesh(options.mesh)
    options.check_schedule("ddim", options.steps)
    sd = StableDiffusion.from_pretrained(demo.locate(options.model), options.model_dtype, mesh, **options.source)
    scorer = make_scorer(sd, options)
    if rates := unresolved(len(clean)):
        percent = ", ".join(f"{100 * rate:g} %" for rate in rates)
        needed = negatives_needed(min(rates))
        warnings.warn(
            f"too few clean prompts for a false-positive rate of {percent}: {len(clean)}, and {needed} are needed",
            stacklevel=1,
        )
    prompts = memorized + clean
    size = rows_multiple(min(options.batch_size, len(prompts)), sd.mesh)
    timed = list(islice(cycle(prompts), size))
    with tqdm(total=len(prompts) + len(scorer.detectors), unit="prompt", disable=None) as bar:
        parts = []
        for part in score_batches(scorer, ((prompt, 0) for prompt in prompts), size):
            parts.append(part)
            bar.update(len(part.prompts))
        detection = concatenate(parts)
        labels = np.arange(len(prompts)) < len(memorized)
        write_scores(options.out / "scores.csv", detection, labels)
        evaluated = {}
        for name, scores in detection.scores.items():
            alone = replace(scorer, detectors={name: scorer.detectors[name]})
            finite = np.isfinite(scores)
            evaluated[name] = Evaluated(
                scores[labels & finite],
                scores[~labels & finite],
                int((~finite).sum()),
                forwards_per_prompt(alone, size),
                seconds_per_prompt(alone, timed),
            )
            bar.update()
    about: dict[str, Any] = {
        "model": options.model_name,
        "fingerprint": sd.fingerprint(),
        "settings": settings_of(scorer) | {"dtype": sd.dtype, "batch_size": size},
        "versions": versions(),
    }
    print(write_evaluation(options.out, evaluated, len(memorized), len(clean), about), end="")
    print(f"entropy_e reads {scorer.read_site}")
    if options.report:
        from memattn_jax.report.html.evaluations import write_evaluation_page

        print(f"{write_evaluation_page(options.out)} in {options.out}")
    print(f"evaluation.json, evaluation.md, roc.png and scores.csv in {options.out}")


def cli(*, alone: bool = False) -> NoReturn:
    """Runs `memattn evaluate`; for `alone` see `run_command`."""
    run_command("evaluate", Options, main, alone=alone)
