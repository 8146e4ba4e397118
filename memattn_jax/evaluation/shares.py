"""Shares with exact intervals, and the distance between two sets of images."""

from collections.abc import Callable, Sequence

import numpy as np

from memattn_jax.errors import InputError

DRAWS = 1000  # of a bootstrap


def share_interval(share: float, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of Clopper and Pearson (Biometrika 26, 1934) for a share of independent trials.

    Where several samples belong to one trial, as the seeds of a prompt, `share` may be a mean over all of them: the
    number of successes is then not whole, and the interval is that of the beta distributions between.

    Args:
      share: from 0 to 1.
      trials: independent ones, such as prompts.
      confidence: from 0 to 1.

    Raises:
      InputError: no trials.
    """
    from scipy import stats  # half a second to import, that sampling does not need

    if trials < 1:
        raise InputError("a share of no trials has no interval; expected at least one prompt")
    hits, tail = share * trials, (1 - confidence) / 2
    low = float(stats.beta.ppf(tail, hits, trials - hits + 1)) if hits > 0 else 0.0
    high = float(stats.beta.ppf(1 - tail, hits + 1, trials - hits)) if hits < trials else 1.0
    return low, high


def frechet_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Fréchet distance of two sets of features, [n, features] each (Heusel et al., arXiv 1706.08500, equation 6).

    ‖μ_x − μ_y‖² + tr(Σ_x + Σ_y − 2 (Σ_x Σ_y)^½), of their means and covariances. With few samples it is biased upwards,
    alike for sets of one size; it is comparable only to itself, by its features and number of samples.
    """
    covariances = [np.cov(np.asarray(features, np.float64).T, ddof=1) for features in (x, y)]
    # the trace of the root is the sum of the roots of the product's eigenvalues, which are real and not negative
    values = np.linalg.eigvals(covariances[0] @ covariances[1])
    root = np.sqrt(np.maximum(values.real, 0)).sum()
    means = np.asarray(x, np.float64).mean(0) - np.asarray(y, np.float64).mean(0)
    spread = sum(np.trace(each) for each in covariances) - 2 * root
    return max(0.0, float(means @ means + spread))  # rounding may leave it below 0


def bootstrap_interval(
    statistic: Callable[..., float], *samples: Sequence | np.ndarray, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of a statistic of paired samples, drawn again with replacement along their first axis."""
    rng, arrays = np.random.default_rng(seed), [np.asarray(each) for each in samples]
    count = len(arrays[0])
    drawn = [statistic(*(each[rows] for each in arrays)) for rows in rng.integers(count, size=(DRAWS, count))]
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return float(low), float(high)
