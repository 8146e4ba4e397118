"""One verdict from several detectors, at a false-positive rate that holds for the verdict and not for each of them.

Every detector's score is put on one scale, its distance from the clean median in units of the distance between that
median and the clean scores' 95 % quantile. The joint statistic of a prompt is the largest of these, and its conformal
p-value against clean prompts is the verdict's. A score like any other, it is valid whatever the dependence between
detectors; no correction for their number is needed beyond it.

Median and quantile are fitted on a quarter of the clean prompts, at most 100, and p-values are computed against the
others: the statistic is then a fixed function, as split conformal inference and the theorem on the false discovery
rate ask for (see `conformal.py`). A level of the joint p-value is one threshold for each detector.

Source: the maximum of standardized statistics as in Westfall and Young, Resampling-Based Multiple Testing (1993),
section 2.3, with clean prompts in the place of resamples.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from memattn_jax.detectors.calibration.conformal import ROUNDING, p_values, threshold

FITTED = 100  # clean prompts at most that a detector's scale is fitted on
TAIL = 0.95  # quantile of clean scores that is 1 on the common scale

MEMORIZED, CLEAN, UNKNOWN = "memorized", "clean", "unknown"


def fitting_rows(clean: int) -> np.ndarray:
    """Which of the clean prompts, evenly spread, scales are fitted on; the others make p-values: bool [clean]."""
    count = max(1, min(clean // 4, FITTED))
    chosen = np.zeros(clean, bool)
    chosen[np.arange(count) * clean // count] = True
    return chosen


@dataclass(frozen=True)
class Joint:
    """The joint statistic of some detectors, and its clean values.

    Attributes:
      names: the detectors.
      centre: median of clean scores, float64 [detectors].
      spread: from there to their 95 % quantile, float64 [detectors].
      clean: the statistic of clean prompts, ascending, float64 [clean].
    """

    names: tuple[str, ...]
    centre: np.ndarray
    spread: np.ndarray
    clean: np.ndarray

    @classmethod
    def fit(cls, scores: Mapping[str, np.ndarray]) -> "Joint":
        """From each detector's clean scores, float [clean], finite and in the same order of prompts; at least two."""
        names = tuple(scores)
        rows = np.stack([np.asarray(scores[name], np.float64) for name in names], axis=1)
        chosen = fitting_rows(len(rows))
        fitted = rows[chosen]
        centre = np.median(fitted, axis=0)
        spread = np.quantile(fitted, TAIL, axis=0) - centre
        spread = np.where(spread > 0, spread, 1.0)  # scores all alike have no scale of their own
        return cls(names, centre, spread, np.sort(((rows[~chosen] - centre) / spread).max(axis=1)))

    def scaled(self, scores: Mapping[str, np.ndarray]) -> np.ndarray:
        """Scores on the common scale, float64 [batch, detectors]; -infinity where they are not finite."""
        values = np.stack([np.asarray(scores[name], np.float64) for name in self.names], axis=1)
        return np.where(np.isfinite(values), (values - self.centre) / self.spread, -np.inf)

    def statistic(self, scores: Mapping[str, np.ndarray]) -> np.ndarray:
        """The joint statistic of each row, over its finite scores: float64 [batch]; NaN where none is finite."""
        largest = self.scaled(scores).max(axis=1)
        return np.where(np.isneginf(largest), np.nan, largest)

    def p_values(self, scores: Mapping[str, np.ndarray]) -> np.ndarray:
        """The joint p-value of each row, float64 [batch].

        A score that is missing makes it larger, never smaller.
        """
        return p_values(self.clean, self.statistic(scores))

    def over(self, scores: Mapping[str, np.ndarray], level: float) -> dict[str, np.ndarray]:
        """For each detector, bool [batch]: whether its score alone makes the joint p-value at most `level`."""
        above = self.scaled(scores) > threshold(self.clean, level)
        return dict(zip(self.names, above.T, strict=True))

    def thresholds(self, level: float) -> dict[str, float]:
        """For each detector the score strictly above which `over` says so; infinity where there is none."""
        limit = threshold(self.clean, level)
        limits = self.centre + self.spread * limit
        limits = limits + ROUNDING * np.abs(limits)  # a clean prompt's own score does not lie above itself
        return dict(zip(self.names, limits.tolist(), strict=True))

    def resolves(self, level: float) -> bool:
        """Whether clean prompts are enough for a p-value of at most `level`."""
        return threshold(self.clean, level) < np.inf

    def verdicts(self, scores: Mapping[str, np.ndarray], level: float, resolved: bool) -> list[str]:
        """The verdict of each row at a level of the joint p-value.

        "memorized" where it is at most `level`, else "unknown" where a score, of these detectors or any other given,
        is not finite, or clean prompts are too few for the level (not `resolved`); else "clean".
        """
        p = self.p_values(scores)
        complete = np.all([np.isfinite(np.asarray(score, np.float64)) for score in scores.values()], axis=0)
        known = complete & resolved
        flagged = p <= level * (1 + ROUNDING)
        return [MEMORIZED if one else CLEAN if other else UNKNOWN for one, other in zip(flagged, known, strict=True)]


@dataclass(frozen=True)
class Rule:
    """How verdicts are made.

    Attributes:
      joint: of the detectors that decide.
      fpr: the level of the joint p-value, the share of clean prompts that verdicts may call memorized.
      fdr: in its stead, the share of false discoveries among the prompts called memorized. The level follows from all
        p-values of a log, and single rows have no verdict before.
    """

    joint: Joint
    fpr: float | None = None
    fdr: float | None = None

    def judge(self, scores: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
        """Columns of each row: "p", and with `fpr` "verdict" and "over"."""
        p = [None if np.isnan(value) else float(value) for value in self.joint.p_values(scores)]
        if self.fpr is None:
            return [{"p": value} for value in p]
        return [{"p": value} | row for value, row in zip(p, self.settle(scores, self.fpr), strict=True)]

    def settle(self, scores: Mapping[str, np.ndarray], level: float) -> list[dict[str, Any]]:
        """Columns of each row at a level of the joint p-value, 0 where there are no discoveries: "verdict", "over"."""
        over = self.joint.over(scores, level)
        verdicts = self.joint.verdicts(scores, level, self.resolved)
        return [
            {"verdict": verdict, "over": [name for name in self.joint.names if over[name][row]]}
            for row, verdict in enumerate(verdicts)
        ]

    @property
    def resolved(self) -> bool:
        """Whether clean prompts are enough for any row to be called memorized."""
        return self.joint.resolves(self.fdr if self.fpr is None else self.fpr)  # type: ignore[arg-type]
