"""Calibration for `detect`: fit one, write it, and derive the rule for verdicts."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from memattn_jax.errors import InputError
from memattn_jax.prompts.noise_seed import noise_seed
from memattn_jax.text import counted

if TYPE_CHECKING:
    from memattn_jax.detectors import Detection, Scorer
    from memattn_jax.detectors.calibration import Calibration
    from memattn_jax.detectors.calibration.verdicts import Rule
    from memattn_jax.storage import Store

CALIBRATION = "calibration.json"
FPR = 0.01


def fit(scorer: "Scorer", prompts: Sequence[str], *, fpr: float | None, seed: int, batch_size: int) -> "Calibration":
    """Scores clean prompts."""
    from tqdm import tqdm

    from memattn_jax.detectors.calibration.fit import calibrate
    from memattn_jax.detectors.scorer import score_batches
    from memattn_jax.sharding.placement import rows_multiple

    clean = list(dict.fromkeys(prompts))
    size = rows_multiple(min(batch_size, len(clean)), scorer.model.mesh)
    looks = [scorer]
    if scorer.first_step:  # and once as a guard does, with separate noise for each prompt
        looks.append(replace(scorer, detectors=scorer.first_step, seed=None, probes=1, attribute=False))
    with tqdm(total=len(looks) * len(clean), unit="prompt", desc="calibrating", disable=None) as bar:
        found: list[list[Detection]] = []
        for look in looks:
            found.append([])
            rows = ((text, noise_seed(text, seed, look.probes)) for text in clean)
            for detection in score_batches(look, rows, size):
                found[-1].append(detection)
                bar.update(len(detection.prompts))
    calibration = calibrate(scorer, found[0], FPR if fpr is None else fpr, *found[1:])
    if len(clean) > (kept := len(next(iter(calibration.scores.values())))):
        warnings.warn(
            f"left out {counted(len(clean) - kept, 'clean prompt')} with a score that is not finite", stacklevel=1
        )
    return calibration


def write_calibration(calibration: "Calibration", store: "Store", *, overwrite: bool) -> None:
    """Writes calibration.json; raises InputError where there is another one that may not be replaced."""
    from memattn_jax.detectors.calibration.file import to_json

    content = to_json(calibration).encode()
    if not overwrite and store.read(CALIBRATION) not in (None, content):
        raise InputError(f"{store}: holds another {CALIBRATION}; choose another --out or add --overwrite")
    store.write(CALIBRATION, content)
    print(f"{CALIBRATION} in {store}")


def rule_of(scorer: "Scorer", calibration: "Calibration | None", fpr: float | None, fdr: float | None) -> "Rule | None":
    """The rule that turns scores into verdicts; warns where clean prompts are too few for any."""
    from memattn_jax.detectors.calibration.conformal import clean_needed
    from memattn_jax.detectors.calibration.verdicts import Rule

    joint = None if calibration is None else calibration.joint(scorer.judging)
    if joint is None or calibration is None:
        if (fpr, fdr) != (None, None):
            option = "--fpr" if fdr is None else "--fdr"
            if calibration is None:
                raise InputError(f"{option} needs clean prompts: --calibration FILE")
            names = ", ".join(scorer.detectors)
            raise InputError(f"{option} sets the rate of verdicts, and there is none by {names}: no clean scores of it")
        return None
    if others := [name for name in scorer.judging if name not in joint.names]:
        warnings.warn(
            f"the calibration has no scores of {', '.join(others)}; verdicts use {', '.join(joint.names)} alone",
            stacklevel=1,
        )
    level = calibration.fpr if fpr is None and fdr is None else fpr
    rule = Rule(joint, level, fdr)
    if not rule.resolved:
        rate = fdr if level is None else level
        warnings.warn(
            f"too few clean prompts for a rate of {rate:g}, so no verdict is clean: {len(joint.clean)}, and "
            f"{clean_needed(rate)} are needed besides those that the scales are fitted on",  # type: ignore[arg-type]
            stacklevel=1,
        )
    return rule


def print_thresholds(rule: "Rule") -> None:
    """Prints where each detector's scores make a verdict "memorized"."""
    from memattn_jax.evaluation.metrics import threshold_at_fpr

    if rule.fpr is None:
        return
    interval = threshold_at_fpr(rule.joint.clean, rule.fpr)
    for i, (name, value) in enumerate(rule.joint.thresholds(rule.fpr).items()):
        low, high = (rule.joint.centre[i] + rule.joint.spread[i] * bound for bound in (interval.low, interval.high))
        interval_text = f"95 % interval {low:.4f} to {high:.4f}"
        print(f"{name}: threshold {value:.4f}, {interval_text}, {counted(len(rule.joint.clean), 'clean prompt')}")
