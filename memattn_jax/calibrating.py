"""What `detect` knows of clean prompts: calibrations made, checked, and turned into the rule that verdicts follow."""

import warnings
import zlib
from dataclasses import replace
from typing import TYPE_CHECKING

from memattn_jax.errors import InputError
from memattn_jax.prompts import as_text, read_prompts

if TYPE_CHECKING:
    from memattn_jax.calibration import Calibration
    from memattn_jax.detect import Options
    from memattn_jax.detectors import Detection, Scorer
    from memattn_jax.runs.store import Store
    from memattn_jax.verdicts import Rule

FPR = 0.01


def noise_seed(prompt: str, scorer: "Scorer", options: "Options") -> int:
    """Seed of the first probe where each prompt has its own."""
    return (zlib.crc32(prompt.encode()) + (options.seed or 0)) % (2**32 - scorer.probes)


def fit(scorer: "Scorer", options: "Options", store: "Store") -> "Calibration":
    """Scores clean prompts, writes what they score and tells it."""
    from tqdm import tqdm

    from memattn_jax.calibration import calibrate
    from memattn_jax.detectors.scorer import score_batches
    from memattn_jax.parallel import rows_multiple

    clean = list(dict.fromkeys(map(as_text, read_prompts(str(options.calibrate), options.column))))
    size = rows_multiple(min(options.batch_size, len(clean)), scorer.sd.mesh)
    looks = [scorer]
    if scorer.first_step:  # and once as a guard looks, through a noise of each prompt's own
        looks.append(replace(scorer, detectors=scorer.first_step, seed=None, probes=1, attribute=False))
    with tqdm(total=len(looks) * len(clean), unit="prompt", desc="calibrating", disable=None) as bar:
        found: list[list[Detection]] = []
        for look in looks:
            found.append([])
            for detection in score_batches(look, ((text, noise_seed(text, look, options)) for text in clean), size):
                found[-1].append(detection)
                bar.update(len(detection.prompts))
    calibration = calibrate(scorer, found[0], FPR if options.fpr is None else options.fpr, *found[1:])
    store.write("calibration.json", calibration.to_json().encode())
    if len(clean) > (kept := len(next(iter(calibration.scores.values())))):
        warnings.warn(
            f"{len(clean) - kept} clean prompts have a score that is not finite, and are left out", stacklevel=1
        )
    return calibration


def checked(scorer: "Scorer", options: "Options", given: "Calibration | None") -> "Calibration | None":
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


def rule_of(scorer: "Scorer", options: "Options", calibration: "Calibration | None") -> "Rule | None":
    """How verdicts are made of the scores, and a warning where clean prompts are too few for any."""
    from memattn_jax.conformal import clean_needed
    from memattn_jax.detectors.registry import PROMPT
    from memattn_jax.verdicts import Rule

    joint = None if calibration is None else calibration.joint(scorer.detectors)
    if joint is None or calibration is None:
        if calibration is None and (options.fpr, options.fdr) != (None, None):
            raise InputError(f"--{'fpr' if options.fdr is None else 'fdr'} needs clean prompts: --calibration FILE")
        return None
    if others := [name for name in scorer.detectors if name not in joint.names and name not in PROMPT]:
        warnings.warn(
            f"no clean scores of {', '.join(others)}; verdicts come from {', '.join(joint.names)}", stacklevel=1
        )
    fpr = calibration.fpr if options.fpr is None and options.fdr is None else options.fpr
    rule = Rule(joint, fpr, options.fdr)
    if not rule.resolved:
        level = options.fdr if fpr is None else fpr
        needed = clean_needed(level)  # type: ignore[arg-type]
        warnings.warn(
            f"{len(joint.clean)} clean prompts cannot resolve a rate of {level:g}, and no verdict is clean; "
            f"{needed} are needed, besides those that scales are fitted on",
            stacklevel=1,
        )
    return rule


def tell_thresholds(rule: "Rule") -> None:
    """Prints where each detector's scores make a verdict "memorized"."""
    from memattn_jax.metrics import threshold_at_fpr

    if rule.fpr is None:
        return
    interval = threshold_at_fpr(rule.joint.clean, rule.fpr)
    for i, (name, value) in enumerate(rule.joint.thresholds(rule.fpr).items()):
        low, high = (rule.joint.centre[i] + rule.joint.spread[i] * bound for bound in (interval.low, interval.high))
        interval_text = f"95 % interval {low:.4f} to {high:.4f}"
        print(f"{name}: threshold {value:.4f}, {interval_text}, {len(rule.joint.clean)} clean prompts")
