"""Conformal p-values, the Benjamini-Hochberg procedure, and one verdict from several detectors."""

import math
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from memattn_jax import InputError
from memattn_jax.detectors.calibration.conformal import (
    benjamini_hochberg,
    check_level,
    clean_needed,
    p_values,
    threshold,
)
from memattn_jax.detectors.calibration.verdicts import CLEAN, MEMORIZED, UNKNOWN, Joint, Rule, fitting_rows
from memattn_jax.report.findings import Findings, print_verdicts

NAMES = ("a", "b", "c")


def draw(rng: np.random.Generator, rows: int) -> dict[str, np.ndarray]:
    """Three dependent detectors with scales and tails of their own."""
    common = rng.standard_normal(rows)
    return {
        "a": np.float32(common + 0.3 * rng.standard_normal(rows)),
        "b": np.float32(1e3 * np.exp(common - rng.standard_normal(rows))),
        "c": np.float32(1e-4 * rng.standard_t(3, rows)),
    }


def test_p_values_count_clean_scores_at_or_above():
    clean = np.array([1.0, 2.0, 2.0, 5.0])
    expected = [1, 5 / 5, 4 / 5, 4 / 5, 2 / 5, 2 / 5, 1 / 5]
    scores = np.array([0.0, 1.0, 1.5, 2.0, 4.0, 5.0, 6.0])
    np.testing.assert_allclose(p_values(clean, scores), expected)
    assert np.isnan(p_values(clean, np.array([math.nan]))).all()


@pytest.mark.parametrize("level", [0.01, 0.05, 0.1, 0.29, 0.5, 0.99])
@pytest.mark.parametrize("clean", [3, 9, 19, 99, 100])
def test_a_threshold_is_where_p_reaches_the_level(level, clean):
    """Ties among clean scores included; too few of them give none."""
    ordered = np.sort(np.random.default_rng(clean).integers(0, 30, clean).astype(float))
    limit, scores = threshold(ordered, level), np.arange(-1.0, 32.0)
    p = p_values(ordered, scores)
    np.testing.assert_array_equal(scores > limit, p <= level * (1 + 1e-12))
    assert math.isinf(limit) == (clean < clean_needed(level))


@pytest.mark.parametrize(("level", "needed"), [(0.01, 99), (0.05, 19), (0.1, 9), (0.5, 1), (0.29, 3)])
def test_clean_prompts_needed(level, needed):
    assert clean_needed(level) == needed


@pytest.mark.parametrize("level", [0, 1, -0.1, 2, math.nan, math.inf])
def test_levels_out_of_range(level):
    with pytest.raises(InputError, match=r"^--fdr .*between 0 and 1"):
        check_level(level, "--fdr")


def test_benjamini_hochberg_is_scipys():
    rng = np.random.default_rng(0)
    for _ in range(200):
        p = rng.integers(1, 40, rng.integers(1, 60)) / 40 * rng.choice([1, 0.2])
        cutoff = benjamini_hochberg(Counter(p.tolist()), 0.1)
        np.testing.assert_array_equal(p <= cutoff, stats.false_discovery_control(p) <= 0.1 * (1 + 1e-12))
    assert benjamini_hochberg(Counter(), 0.1) == 0


def test_scales_are_fitted_on_a_quarter_that_makes_no_p_value():
    for clean, count in ((2, 1), (7, 1), (18, 4), (400, 100), (4000, 100)):
        chosen = fitting_rows(clean)
        assert (len(chosen), chosen.sum()) == (clean, count)
        assert np.ptp(np.diff(np.flatnonzero(chosen))) <= 1 if count > 1 else True
    scores = draw(np.random.default_rng(1), 400)
    joint = Joint.fit(scores)
    assert len(joint.clean) == 300
    moved = {name: np.where(fitting_rows(400), score, score + 1e-9) for name, score in scores.items()}
    np.testing.assert_array_equal(Joint.fit(moved).centre, joint.centre)


def test_the_joint_statistic_is_the_largest_on_one_scale():
    """Each detector's median is 0 and its 95 % quantile 1, whatever its unit; a common factor changes nothing."""
    scores = draw(np.random.default_rng(2), 400)
    joint, fitted = Joint.fit(scores), fitting_rows(400)
    columns = []
    for score in scores.values():
        own = score[fitted].astype(np.float64)
        columns.append((score - np.median(own)) / (np.quantile(own, 0.95) - np.median(own)))
    np.testing.assert_allclose(joint.statistic(scores), np.max(columns, axis=0), rtol=1e-6)
    np.testing.assert_array_equal(joint.clean, np.sort(joint.statistic(scores)[~fitted]))
    other = Joint.fit({name: 8 * score for name, score in scores.items()})
    np.testing.assert_array_equal(other.clean, joint.clean)


@pytest.mark.parametrize("names", [("a",), NAMES])
@pytest.mark.parametrize("level", [0.01, 0.05, 0.2])
def test_the_rate_is_the_verdicts_and_not_each_detectors(names, level):
    """Of new clean prompts, over many calibrations: the level at most, and not much less; a union would exceed it."""
    rng = np.random.default_rng(3)
    flagged, union, trials, clean, new = 0, 0, 300, 240, 50
    for _ in range(trials):
        old, fresh = ({name: scores[name] for name in names} for scores in (draw(rng, clean), draw(rng, new)))
        joint = Joint.fit(old)
        flagged += joint.verdicts(fresh, level, True).count(MEMORIZED)
        above = [fresh[name] > threshold(np.sort(old[name]), level) for name in names]
        union += np.any(above, axis=0).sum()
    kept = clean - clean // 4
    expected = math.floor(level * (kept + 1) + 1e-9) / (kept + 1)
    deviation = math.sqrt(trials * new * level * (1 - level) + trials * new**2 * level * (1 - level) / kept)
    assert abs(flagged - trials * new * expected) < 3 * deviation
    if len(names) > 1:
        assert union > trials * new * level + 3 * deviation


def test_false_discoveries_stay_at_the_rate():
    """The mean share of false discoveries over logs of a third memorized prompts, calibrations drawn anew."""
    rng = np.random.default_rng(4)
    shares = []
    for _ in range(300):
        joint = Joint.fit(draw(rng, 400))
        log = draw(rng, 150)
        memorized = np.arange(150) < 50
        log["a"] = np.where(memorized, log["a"] + 4, log["a"])
        p = joint.p_values(log)
        found = p <= benjamini_hochberg(Counter(p.tolist()), 0.2)
        shares.append((found & ~memorized).sum() / max(1, found.sum()))
    mean, error = np.mean(shares), np.std(shares) / math.sqrt(len(shares))
    assert 0.2 * 100 / 150 - 3 * error - 0.02 < mean < 0.2 * 100 / 150 + 3 * error


def test_over_thresholds_and_verdicts_are_one_rule():
    rng = np.random.default_rng(5)
    old, new = draw(rng, 400), draw(rng, 2000)
    new = {name: np.concatenate([scores, old[name]]) for name, scores in new.items()}  # ties with clean prompts
    joint = Joint.fit(old)
    for level in (0.01, 0.1, 0.5):
        over, p = joint.over(new, level), joint.p_values(new)
        anything = np.any(list(over.values()), axis=0)
        np.testing.assert_array_equal(anything, p <= level)
        assert joint.verdicts(new, level, True) == [MEMORIZED if one else CLEAN for one in anything]
        for name, limit in joint.thresholds(level).items():
            np.testing.assert_array_equal(new[name] > limit, over[name])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_never_clean(bad):
    """Another detector may still call the row memorized, and a detector that decides nothing may be the missing one."""
    joint = Joint.fit(draw(np.random.default_rng(6), 400))
    middle = dict(zip(NAMES, joint.centre.tolist(), strict=True))
    scores = {name: np.array([middle[name], middle[name], bad, bad]) for name in NAMES}
    scores["a"][:2] = bad, 1e3
    scores["b"][1] = bad
    rule = Rule(joint, fpr=0.05)
    rows = rule.judge(scores)
    assert [row["verdict"] for row in rows] == [UNKNOWN, MEMORIZED, UNKNOWN, UNKNOWN]
    assert [row["over"] for row in rows] == [[], ["a"], [], []]
    assert rows[2]["p"] is rows[3]["p"] is None
    good = {name: np.array([value]) for name, value in middle.items()}
    assert rule.judge(good)[0]["verdict"] == CLEAN
    assert rule.judge(good | {"d": np.array([bad])})[0]["verdict"] == UNKNOWN


def test_too_few_clean_prompts_call_nothing_clean():
    """18 prompts leave 14 for p-values, of which none can be 0.05."""
    scores = draw(np.random.default_rng(7), 18)
    joint = Joint.fit(scores)
    for rule, resolved in ((Rule(joint, 0.05), False), (Rule(joint, 0.1), True), (Rule(joint, fdr=0.05), False)):
        assert rule.resolved is resolved
        verdicts = {row["verdict"] for row in rule.settle(scores, rule.fpr or 0)}
        assert verdicts == ({UNKNOWN} if not resolved else verdicts - {UNKNOWN})
    assert set(joint.thresholds(0.05).values()) == {math.inf}


def test_the_clean_prompts_that_are_needed_make_p_values():
    """Not those that the scales are fitted on, too: 40 prompts leave 30."""
    rule = Rule(Joint.fit({"a": np.arange(40.0)}), fdr=0.05)
    found = Findings(("a",), rule)
    found.rows, found.p = 100, Counter([0.5] * 100)
    needed = r"with 30 clean prompts for p-values.* 65 or more of 100; .* takes 1999 clean prompts besides those"
    with pytest.warns(UserWarning, match=needed):
        print_verdicts(found, rule, 0.0)


def test_detectors_with_no_spread():
    """Scores all alike on clean prompts have no scale; another score is still above them."""
    scores = {"a": np.zeros(40), "b": np.arange(40.0)}
    joint = Joint.fit(scores)
    assert np.isfinite(joint.clean).all()
    found = Rule(joint, 0.1).judge({"a": np.array([0.0, 9.0]), "b": np.array([3.0, 3.0])})
    assert [row["over"] for row in found] == [[], ["a"]]
