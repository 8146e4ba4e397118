"""How well scores separate memorized prompts from clean ones; higher scores mean more likely memorized.

`memorized` (positives) and `clean` (negatives) are 1-D arrays of one score a prompt; a rate is a share from 0 to 1.
Every function raises `InputError` where a class has no scores, or NaN among them, or they are not 1-D, and where a
false-positive rate is outside [0, 1].
"""

import math
from typing import NamedTuple

import numpy as np

from memattn_jax.errors import InputError

ROUNDING = 1e-12  # relative: .29 * 100 lies just below 29, and is 29


class Threshold(NamedTuple):
    """A threshold on scores, and how far the clean scores behind it determine it."""

    value: float  # positive is what lies strictly above
    low: float  # 95 % confidence interval of the clean scores' (1 − fpr) quantile; −inf and
    high: float  # +inf where there are too few of them
    negatives: int  # number of clean scores
    resolvable: bool  # whether one false positive among them is at most the rate


def auroc(memorized: np.ndarray, clean: np.ndarray) -> float:
    """Area under the ROC curve: how often a memorized prompt scores above a clean one, ties counting half.

    Source: the Mann-Whitney statistic, from midranks.
    """
    memorized, clean = _scores("memorized", memorized), _scores("clean", clean)
    return float(_clean_below(memorized, clean).mean() / len(clean))


def auroc_interval(memorized: np.ndarray, clean: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Confidence interval of the AUROC, prompts being independent.

    DeLong's variance, and a normal interval of the logit, so that it stays within [0, 1]. Where that variance is 0 or
    undefined (AUROC 0 or 1, scores all tied, a class of one) it says nothing about the error. There the bounds are
    those of Clopper and Pearson with the AUROC as the share of successes among min(memorized, clean) trials, the pairs
    that share no prompt: at AUROC 1, from (α/2)^(1/trials) to 1. At 0 and 1 they hold for every distribution; between,
    where successes need not be whole, they are an approximation. They are wider than DeLong's next to them.

    Raises:
      InputError: also where the confidence is not between 0 and 1.

    Source: DeLong, DeLong and Clarke-Pearson, Biometrics 44 (1988); from midranks as in Sun and Xu, IEEE Signal
    Processing Letters 21 (2014).
    """
    from scipy import stats  # half a second to import, that sampling does not need

    memorized, clean = _scores("memorized", memorized), _scores("clean", clean)
    if not 0 < confidence < 1:
        raise InputError(f"metrics: confidence {confidence}; must be above 0 and below 1")
    m, n = len(memorized), len(clean)
    below = _clean_below(memorized, clean)  # placements, as counts: where they are equal, their variance is exactly 0
    above = m - _clean_below(clean, memorized)
    area = float(below.mean() / n)
    tail = (1 - confidence) / 2
    variance = below.var(ddof=1) / n**2 / m + above.var(ddof=1) / m**2 / n if min(m, n) > 1 else 0.0
    if variance == 0 or area in (0, 1):
        trials = min(m, n)
        hits = area * trials
        low = stats.beta.ppf(tail, hits, trials - hits + 1) if area > 0 else 0.0
        high = stats.beta.ppf(1 - tail, hits + 1, trials - hits) if area < 1 else 1.0
    else:
        half = stats.norm.isf(tail) * math.sqrt(variance) / (area * (1 - area))
        low, high = stats.logistic.cdf(stats.logistic.ppf(area) + np.array([-half, half]))
    return float(low), float(high)


def roc_curve(memorized: np.ndarray, clean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ROC curve, a point for each distinct score, from the highest down; positive is a score at or above it.

    Returns:
      False-positive and true-positive rates, float64 [distinct + 1], from (0, 0) to (1, 1).

    Source: the points of `sklearn.metrics.roc_curve` with `drop_intermediate=False`.
    """
    memorized, clean = np.sort(_scores("memorized", memorized)), np.sort(_scores("clean", clean))
    thresholds = np.unique(np.concatenate([memorized, clean]))[::-1]
    fpr, tpr = (np.append(0, len(x) - np.searchsorted(x, thresholds)) / len(x) for x in (clean, memorized))
    return fpr, tpr


def tpr_at_fpr(memorized: np.ndarray, clean: np.ndarray, fpr: float) -> float:
    """Share of memorized scores strictly above the threshold of `threshold_at_fpr`: the rate is never exceeded."""
    return float((_scores("memorized", memorized) > _threshold(_scores("clean", clean), fpr)).mean())


def nearest_tpr_at_fpr(memorized: np.ndarray, clean: np.ndarray, fpr: float) -> float:
    """TPR at the point of the ROC curve whose FPR is nearest to `fpr`, the first of equally near ones.

    That rate may be above `fpr`. Where no point is nearer than FPR 0, the first point is (0, 0) and the result 0, even
    for classes that a threshold separates.

    Source: `detect.py` of the reference, on `sklearn.metrics.roc_curve` as it is by default: without the points whose
    steps from the one before and to the one after are equal, which moves the nearest.
    """
    x, y = roc_curve(memorized, clean)
    _check_rate(fpr)
    m, n = len(memorized), len(clean)
    kept = np.ones(len(x), bool)  # steps are compared as counts, and the one from (0, 0) is not
    kept[2:-1] = (np.diff(np.rint(x[1:] * n), 2) != 0) | (np.diff(np.rint(y[1:] * m), 2) != 0)
    return float(y[kept][np.argmin(np.abs(x[kept] - fpr))])


def threshold_at_fpr(clean: np.ndarray, fpr: float) -> Threshold:
    """The smallest threshold with at most ⌊fpr · clean⌋ clean scores strictly above it; −inf where all may be.

    The interval is that of order statistics of independent scores, at least 95 % whatever their distribution.
    Where the rate is not resolvable, the threshold is the highest clean score.

    Source: the binomial bounds on a quantile, e.g. David and Nagaraja, Order Statistics, section 7.1.
    """
    from scipy import stats  # half a second to import, that sampling does not need

    clean = np.sort(_scores("clean", clean))
    value = _threshold(clean, fpr)
    n = len(clean)
    fewest, most = stats.binom.ppf([0.025, 0.975], n, 1 - fpr).astype(int)  # scores below the quantile
    padded = np.concatenate([[-np.inf], clean, [np.inf]])  # the k-th smallest at k
    low, high = float(padded[fewest]), float(padded[most + 1])
    return Threshold(value, low, high, n, _false_positives(n, fpr) >= 1)


def negatives_needed(fpr: float) -> int:
    """How many clean scores make a false-positive rate resolvable: the fewest of which one is at most that share.

    Raises:
      InputError: also where the rate is 0, which no number resolves.
    """
    _check_rate(fpr)
    if fpr == 0:
        raise InputError("metrics: false-positive rate 0; must be above 0, since no number of clean scores resolves it")
    return math.ceil((1 - ROUNDING) / fpr)


def _scores(name: str, scores: np.ndarray) -> np.ndarray:
    """The scores of one class as float64, checked."""
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 1:
        raise InputError(f"metrics: {name} scores of shape {scores.shape}; must be 1-D, one per prompt")
    if not scores.size:
        raise InputError(f"metrics: no {name} scores; expected at least one")
    if nan := int(np.isnan(scores).sum()):
        raise InputError(f"metrics: {nan} of {scores.size} {name} scores are NaN; all must be numbers")
    return scores


def _check_rate(fpr: float) -> None:
    if not 0 <= fpr <= 1:
        raise InputError(f"metrics: false-positive rate {fpr}; must be between 0 and 1")


def _clean_below(memorized: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """For each memorized score, the number of clean ones below it, ties counting half: float64, exact."""
    from scipy import stats

    ranks = stats.rankdata(np.concatenate([memorized, clean]))[: len(memorized)]
    return ranks - stats.rankdata(memorized)


def _false_positives(negatives: int, fpr: float) -> int:
    """How many of so many clean scores the rate allows above the threshold."""
    return math.floor(fpr * negatives * (1 + ROUNDING))


def _threshold(clean: np.ndarray, fpr: float) -> float:
    _check_rate(fpr)
    allowed = _false_positives(len(clean), fpr)
    return float(np.sort(clean)[-1 - allowed]) if allowed < len(clean) else -math.inf
