"""Conformal p-values against clean scores, and the Benjamini-Hochberg procedure on them.

A p-value is the share of clean scores at or above a score, the score itself counted among them:

    p = (1 + #{clean ≥ score}) / (1 + #clean)

Where the prompt comes from the same distribution as the clean prompts, P(p ≤ level) ≤ level, whatever that distribution
is: flagging p ≤ level has a false-positive rate of at most `level`. P-values that share their clean scores depend
positively on each other (PRDS), so the Benjamini-Hochberg procedure on them controls the false discovery rate.

Source: Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World (2005), section 2.2; Bates, Candès, Lei,
Romano and Sesia, "Testing for outliers with conformal p-values", Annals of Statistics 51 (2023), theorem 2; Benjamini
and Hochberg, Journal of the Royal Statistical Society B 57 (1995).
"""

import math
from collections.abc import Mapping

import numpy as np

from memattn_jax.errors import InputError

ROUNDING = 1e-12  # relative: .29 * 100 lies just below 29, and is 29


def p_values(clean: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Conformal p-value of each score, float64 [batch]; NaN of a NaN.

    Args:
      clean: clean scores in ascending order, float [clean].
      scores: float [batch]; larger means that memorization is more likely.
    """
    at_or_above = len(clean) - np.searchsorted(clean, scores, side="left")
    return np.where(np.isnan(scores), np.nan, (1 + at_or_above) / (1 + len(clean)))


def threshold(clean: np.ndarray, level: float) -> float:
    """The threshold that scores lie strictly above exactly where their p-value is at most `level`.

    Infinity where the clean scores are too few for any p-value to be that small.

    Args:
      clean: clean scores in ascending order, float [clean].
      level: in (0, 1).
    """
    allowed = min(math.floor(level * (1 + len(clean)) * (1 + ROUNDING)), len(clean)) - 1
    return math.inf if allowed < 0 else float(clean[-1 - allowed])


def clean_needed(level: float) -> int:
    """The smallest number of clean scores with which a p-value can be at most `level`, in (0, 1)."""
    return math.ceil((1 - ROUNDING) / level) - 1


def check_level(level: float | None, option: str) -> None:
    """Raises InputError unless the level lies in (0, 1); `option` names it in the message."""
    if level is not None and not 0 < level < 1:
        raise InputError(f"{option} {level:g}: must be between 0 and 1, such as 0.01")


def benjamini_hochberg(counts: Mapping[float, int], fdr: float) -> float:
    """The largest p-value that is a discovery, 0 where none is.

    All p-values up to it are discoveries; the expected share of false ones among them is at most `fdr`.

    Args:
      counts: how often each p-value occurred; conformal p-values have few distinct values, however many rows.
      fdr: false discovery rate, in (0, 1).
    """
    tests, reached, cutoff = sum(counts.values()), 0, 0.0
    for p, count in sorted(counts.items()):
        reached += count
        if p * tests <= fdr * reached * (1 + ROUNDING):
            cutoff = p
    return cutoff
