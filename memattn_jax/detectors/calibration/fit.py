"""Fits calibrations on a scorer's detections of clean prompts."""

from collections.abc import Iterable, Sequence
from dataclasses import fields

import jax
import jax.numpy as jnp
import numpy as np

from memattn_jax.detectors.calibration.attention_excess import CleanAttention
from memattn_jax.detectors.calibration.calibration import Calibration, settings_of
from memattn_jax.detectors.calibration.conformal import check_level
from memattn_jax.detectors.calibration.likeness import Kind
from memattn_jax.detectors.calibration.verdicts import fitting_rows
from memattn_jax.detectors.detection import Detection, concatenate, select
from memattn_jax.detectors.protocol import TrajectoryDetector
from memattn_jax.detectors.scorer import Scorer
from memattn_jax.errors import InputError


def calibrate(scorer: Scorer, clean: Sequence[Detection], fpr: float, own: Sequence[Detection] = ()) -> Calibration:
    """Fits a calibration on detections of clean prompts.

    Args:
      scorer: with `attribute`, so that the detections hold attention.
      clean: its detections of clean prompts. A prompt with a score that is not finite is left out.
      fpr: the share of clean prompts that a verdict may call memorized, in (0, 1).
      own: detections of first-step detectors through one noise of each prompt's own, for a guard; likewise.

    Raises:
      InputError: an fpr out of range, or too few prompts that all detectors gave a finite score.
    """
    check_level(fpr, "--fpr")
    rows = concatenate(clean)
    assert rows.attention is not None
    given = [score for name, score in rows.scores.items() if name not in scorer.unfitted]
    rows = select(rows, finite_rows([*given, rows.attention, *jax.tree.leaves(rows.kept)], "clean prompts"))
    scores = {name: np.asarray(rows.scores[name], np.float32) for name in scorer.judging}
    fits: dict[str, dict[str, np.ndarray]] = {}
    for name in scorer.unfitted:
        fits[name], scores[name] = fit_detector(name, scorer.trajectory[name], rows)
    own_noise: dict[str, np.ndarray] = {}
    if own:
        looked = concatenate(own)
        kept = finite_rows(looked.scores.values(), "clean prompts through their own noise")
        own_noise = {
            name: np.asarray(score[kept], np.float32)
            for name, score in looked.scores.items()
            if name in scorer.first_step
        }
    attention = CleanAttention.fit(rows.attention, rows.lengths)
    ids = [row[1 : length - 1].tolist() for row, length in zip(rows.input_ids, rows.lengths, strict=True)]
    kind = Kind.of(rows.prompts, ids)
    return Calibration(scorer.model.fingerprint(), settings_of(scorer), fpr, scores, own_noise, attention, kind, fits)


def fit_detector(name: str, detector: TrajectoryDetector, rows: Detection) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Fits a detector on some of the clean prompts: its fields as arrays, and all prompts' scores by it."""

    def as_runs(values: np.ndarray) -> np.ndarray:
        return np.moveaxis(values.reshape(-1, *values.shape[2:]), 1, 0)  # [calls, prompts · probes, ...]

    chosen = fitting_rows(len(rows.prompts))
    if chosen.sum() < 2:
        raise InputError(f"{name} needs at least 8 clean prompts to fit, but there are {len(rows.prompts)}")
    fitted = detector.fit(jax.tree.map(lambda values: as_runs(values[chosen]), rows.kept[name]))
    kept = jax.tree.map(as_runs, rows.kept[name])
    probes = jax.tree.leaves(rows.kept[name])[0].shape[1]
    scores = np.asarray(fitted.finish(kept, jnp.repeat(rows.lengths, probes)))
    parts = {field.name: np.asarray(getattr(fitted, field.name)) for field in fields(fitted)}  # type: ignore[arg-type]
    return parts, scores.reshape(-1, probes).mean(axis=1)


def finite_rows(arrays: Iterable[np.ndarray], what: str) -> np.ndarray:
    """The rows that are finite in all arrays, bool [rows]; InputError where they are fewer than two."""
    kept = np.all([np.isfinite(array).reshape(len(array), -1).all(axis=1) for array in arrays], axis=0)
    if kept.sum() < 2:
        raise InputError(f"{kept.sum()} of {len(kept)} {what} have finite scores; needs at least 2")
    return kept
