import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score
from sklearn.metrics import roc_curve as sklearn_roc_curve

from memattn_jax.evaluation.metrics import (
    Threshold,
    auroc,
    auroc_interval,
    nearest_tpr_at_fpr,
    negatives_needed,
    roc_curve,
    threshold_at_fpr,
    tpr_at_fpr,
)

RATES = (0, 0.001, 0.01, 0.03, 0.05, 0.1, 0.29, 0.5, 1)

many = pytest.mark.parametrize("seed", range(6))
ties = pytest.mark.parametrize("levels", [None, 12, 3], ids=["continuous", "ties", "heavy ties"])


def draw(seed: int, levels: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Scores of both classes, of unequal numbers; with levels, only so many values."""
    rng = np.random.default_rng(seed)
    memorized, clean = rng.normal(0.8, 1.3, rng.integers(20, 60)), rng.normal(0, 1, rng.integers(60, 150))
    if levels is not None:
        memorized, clean = (np.clip(np.round(x), -levels // 2, levels // 2) for x in (memorized, clean))
        assert len(np.unique(np.concatenate([memorized, clean]))) < 15
    return memorized, clean


def labelled(memorized: np.ndarray, clean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.repeat([1, 0], [len(memorized), len(clean)]), np.concatenate([memorized, clean])


def comparisons(memorized: np.ndarray, clean: np.ndarray) -> np.ndarray:
    return np.array([[(x > y) + 0.5 * (x == y) for y in clean] for x in memorized])


def naive_variance(memorized: np.ndarray, clean: np.ndarray) -> float:
    """DeLong's equations 4 to 6, pair by pair."""
    psi = comparisons(memorized, clean)
    m, n = psi.shape
    area = sum(psi[i, j] for i in range(m) for j in range(n)) / (m * n)
    s10 = sum((sum(psi[i, j] for j in range(n)) / n - area) ** 2 for i in range(m)) / (m - 1)
    s01 = sum((sum(psi[i, j] for i in range(m)) / m - area) ** 2 for j in range(n)) / (n - 1)
    return s10 / m + s01 / n


def logit(share: float) -> float:
    return math.log(share / (1 - share))


@many
@ties
def test_the_area_is_that_of_scikit_learn(seed, levels):
    memorized, clean = draw(seed, levels)
    assert auroc(memorized, clean) == pytest.approx(roc_auc_score(*labelled(memorized, clean)), abs=1e-12)


def test_the_area_counts_ties_half():
    assert auroc(np.array([2.0, 3.0]), np.array([1.0, 2.0])) == 3.5 / 4
    assert auroc(np.array([0.0]), np.array([0.0, 0.0])) == 0.5
    assert auroc(np.array([5, 6]), np.array([1, 2, 3])) == 1
    assert auroc(np.array([1, 2]), np.array([5.0, math.inf])) == 0


@many
@ties
def test_the_curve_is_that_of_scikit_learn_with_every_threshold(seed, levels):
    memorized, clean = draw(seed, levels)
    expected = sklearn_roc_curve(*labelled(memorized, clean), drop_intermediate=False)[:2]
    for found, wanted in zip(roc_curve(memorized, clean), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_the_curve_by_hand():
    fpr, tpr = roc_curve(np.array([3.0, 2.0]), np.array([2.0, 1.0, 1.0, 0.0]))
    np.testing.assert_array_equal(fpr, [0, 0, 0.25, 0.75, 1])
    np.testing.assert_array_equal(tpr, [0, 0.5, 1, 1, 1])


@pytest.mark.parametrize("confidence", [0.95, 0.8])
@many
@ties
def test_the_interval_is_delongs_on_the_logit(seed, levels, confidence):
    memorized, clean = draw(seed, levels)
    area = comparisons(memorized, clean).mean()
    half = stats.norm.ppf((1 + confidence) / 2) * math.sqrt(naive_variance(memorized, clean)) / (area * (1 - area))
    expected = [1 / (1 + math.exp(-logit(area) - sign * half)) for sign in (-1, 1)]
    np.testing.assert_allclose(auroc_interval(memorized, clean, confidence), expected, rtol=0, atol=1e-12)


@ties
def test_the_interval_has_the_spread_of_a_bootstrap(levels):
    memorized, clean = draw(0, levels)
    m, n = len(memorized), len(clean)
    rng = np.random.default_rng(1)
    taken = (rng.multinomial(k, np.full(k, 1 / k), 5000) for k in (m, n))
    drawn = np.einsum("bi,ij,bj->b", next(taken), comparisons(memorized, clean), next(taken), optimize=True) / (m * n)
    area, (low, high) = auroc(memorized, clean), auroc_interval(memorized, clean)
    deviation = (logit(high) - logit(low)) / (2 * stats.norm.ppf(0.975)) * area * (1 - area)
    assert deviation == pytest.approx(drawn.std(), rel=0.06)


def test_the_interval_holds_the_true_area_as_often_as_it_says():
    rng = np.random.default_rng(0)
    true = stats.norm.cdf(1 / math.sqrt(2))
    intervals = np.array([auroc_interval(rng.normal(1, 1, 40), rng.normal(0, 1, 60)) for _ in range(1000)])
    assert 0.93 < ((intervals[:, 0] <= true) & (true <= intervals[:, 1])).mean() < 0.97


def test_perfect_separation_leaves_a_bound_by_the_smaller_class():
    memorized, clean = np.arange(10.0, 15), np.arange(8.0)
    low, high = auroc_interval(memorized, clean)
    assert (low, high) == (pytest.approx(0.025 ** (1 / 5)), 1)
    assert auroc_interval(clean, memorized) == (0, pytest.approx(1 - low))
    assert auroc_interval(memorized, clean, 0.8)[0] == pytest.approx(0.1 ** (1 / 5))
    assert auroc_interval(memorized, clean[:3])[0] == pytest.approx(0.025 ** (1 / 3))


@pytest.mark.parametrize(
    ("memorized", "clean"),
    [([0.1] * 7, [0.1] * 9), ([0.1], [0.1]), ([1.5], [0.0, 1.0, 2.0, 3.0]), ([0.0, 1.0, 2.0], [1.5])],
)
def test_without_a_variance_the_interval_is_that_of_the_smaller_class(memorized, clean):
    area, (low, high) = auroc(memorized, clean), auroc_interval(memorized, clean)
    trials = min(len(memorized), len(clean))
    assert low < area < high
    # Clopper and Pearson's bounds solve these, with the incomplete beta function for the binomial sum
    assert stats.beta.cdf(low, area * trials, trials - area * trials + 1) == pytest.approx(0.025)
    assert stats.beta.sf(high, area * trials + 1, trials - area * trials) == pytest.approx(0.025)


def test_the_interval_stays_within_0_and_1():
    memorized, clean = np.append(np.arange(100.0, 104), 0.5), np.arange(9.0)
    low, high = auroc_interval(memorized, clean, 0.9999)
    assert 0 < low < auroc(memorized, clean) < high < 1


def test_the_strict_rate_by_hand():
    clean = np.arange(10.0)
    memorized = np.array([6.5, 8.0, 8.5, 9.0, 9.5])
    assert tpr_at_fpr(memorized, clean, 0) == 1 / 5  # threshold 9, and 9 is not above it
    assert tpr_at_fpr(memorized, clean, 0.1) == 3 / 5  # threshold 8
    assert tpr_at_fpr(memorized, clean, 0.19) == 3 / 5
    assert tpr_at_fpr(memorized, clean, 0.2) == 4 / 5
    assert tpr_at_fpr(memorized, clean[::-1], 0.3) == 5 / 5
    assert tpr_at_fpr(np.array([-5.0]), clean, 1) == 1


def test_the_strict_rate_lets_no_tie_over_the_rate():
    clean = np.array([0.0, 1.0, 2.0, 2.0, 2.0])
    memorized = np.array([1.5, 2.0, 3.0, 4.0])
    assert [tpr_at_fpr(memorized, clean, fpr) for fpr in (0.2, 0.4, 0.6, 0.8)] == [0.5, 0.5, 1, 1]
    assert threshold_at_fpr(clean, 0.4).value == 2  # 1 would let through three of five
    assert threshold_at_fpr(clean, 0.6).value == 1


@many
@ties
def test_the_strict_threshold_is_the_smallest_that_keeps_the_rate(seed, levels):
    memorized, clean = draw(seed, levels)
    for fpr in RATES[:-1]:
        value = threshold_at_fpr(clean, fpr).value
        allowed = math.floor(fpr * len(clean) + 1e-9)
        assert (clean > value).sum() <= allowed < (clean > np.nextafter(value, -np.inf)).sum()
        assert tpr_at_fpr(memorized, clean, fpr) == (memorized > value).sum() / len(memorized)


@pytest.mark.parametrize(("fpr", "allowed"), [(0.07, 7), (0.29, 29), (0.57, 57), (1 - 0.99, 1), (0.0299, 2)])
def test_rounding_takes_no_false_positive_away(fpr, allowed):
    assert threshold_at_fpr(np.arange(100.0), fpr).value == 99 - allowed


@many
@ties
def test_the_nearest_rate_is_that_of_the_reference(seed, levels):
    memorized, clean = draw(seed, levels)
    fpr, tpr, _ = sklearn_roc_curve(*labelled(memorized, clean))
    for rate in (*RATES, *np.random.default_rng(seed).random(200)):
        assert nearest_tpr_at_fpr(memorized, clean, rate) == tpr[np.argmin(np.abs(fpr - rate))]


def test_the_nearest_rate_by_hand():
    memorized, clean = np.array([5.0, 3.0]), np.array([4.0, 2.0, 1.0, 0.0])
    # all points: (0, 0) (0, ½) (¼, ½) (¼, 1) (½, 1) (¾, 1) (1, 1); (½, 1) and (¾, 1) are no corners
    assert nearest_tpr_at_fpr(memorized, clean, 0.1) == 0  # (0, 0) comes before (0, ½)
    assert nearest_tpr_at_fpr(memorized, clean, 0.125) == 0  # as near to ¼: the first
    assert nearest_tpr_at_fpr(memorized, clean, 0.13) == 0.5  # above the rate
    assert tpr_at_fpr(memorized, clean, 0.13) == 0.5
    assert nearest_tpr_at_fpr(memorized, clean, 0.7) == 1
    assert [nearest_tpr_at_fpr(np.zeros(2), np.zeros(3), fpr) for fpr in (0.5, 0.6)] == [0, 1]  # two points


def test_the_nearest_rate_passes_over_points_that_are_no_corners():
    # all points: (0, 0) (0, ⅓) (⅓, ⅓) (⅔, ⅔) (1, 1): tied pairs; the one at ⅔ lies between equal steps
    memorized, clean = np.array([4.0, 1.0, 0.0]), np.array([2.0, 1.0, 0.0])
    assert roc_curve(memorized, clean)[1].tolist() == [0, 1 / 3, 1 / 3, 2 / 3, 1]
    assert nearest_tpr_at_fpr(memorized, clean, 0.65) == 1 / 3  # ⅔ is gone, and ⅓ nearer than 1
    assert nearest_tpr_at_fpr(memorized, clean, 0.68) == 1
    assert nearest_tpr_at_fpr(np.array([5.0, 5.0]), np.array([1.0] * 4), 0.01) == 0  # separated, and yet (0, 0)
    assert tpr_at_fpr(np.array([5.0, 5.0]), np.array([1.0] * 4), 0.01) == 1


@pytest.mark.parametrize("negatives", [30, 100, 500, 2000])
@pytest.mark.parametrize("fpr", [0.01, 0.05, 0.1, 0.5])
def test_the_interval_of_a_threshold_is_the_narrowest_that_is_sure(negatives, fpr):
    found = threshold_at_fpr(np.random.default_rng(0).permutation(np.arange(1.0, negatives + 1)), fpr)
    below = stats.binom(negatives, 1 - fpr)  # so many scores lie below the quantile, and k is the k-th smallest
    assert found.low <= found.value <= found.high
    assert found.negatives == negatives
    assert below.cdf(found.low - 1) <= 0.025 < below.cdf(found.low)
    if found.high < math.inf:
        assert below.sf(found.high - 1) <= 0.025 < below.sf(found.high - 2)
    else:
        assert below.sf(negatives - 1) > 0.025


@pytest.mark.parametrize(("negatives", "fpr"), [(200, 0.1), (600, 0.02)])
def test_the_interval_of_a_threshold_holds_the_quantile_as_often_as_it_says(negatives, fpr):
    rng = np.random.default_rng(0)
    found = [threshold_at_fpr(rng.exponential(size=negatives), fpr) for _ in range(1500)]
    missed = np.array([(-math.log(fpr) < t.low, t.high < -math.log(fpr)) for t in found]).mean(axis=0)
    assert (missed < 0.04).all()
    assert (missed > 0.005).all()


def test_too_few_clean_scores_bound_no_threshold():
    assert threshold_at_fpr(np.arange(367.0), 0.01).high == math.inf  # .99^367 > .025 > .99^368
    assert threshold_at_fpr(np.arange(368.0), 0.01).high == 367
    assert threshold_at_fpr(np.arange(5.0), 0.5) == Threshold(2, -math.inf, math.inf, 5, True)
    assert threshold_at_fpr(np.arange(6.0), 0.5) == Threshold(2, 0, 5, 6, True)
    assert threshold_at_fpr(np.arange(6.0), 0) == Threshold(5, 5, math.inf, 6, False)
    assert threshold_at_fpr(np.arange(6.0), 1) == Threshold(-math.inf, -math.inf, 0, 6, True)


@pytest.mark.parametrize(
    ("fpr", "needed"),
    [(0.01, 100), (0.001, 1000), (1 - 0.99, 100), (0.03, 34), (1 / 3, 3), (1 / 49, 49), (0.3, 4), (1, 1)],
)
def test_how_many_negatives_a_rate_needs(fpr, needed):
    assert negatives_needed(fpr) == needed
    assert threshold_at_fpr(np.arange(float(needed)), fpr).resolvable is True
    if needed > 1:
        assert threshold_at_fpr(np.arange(needed - 1.0), fpr).resolvable is False
