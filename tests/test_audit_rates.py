"""Rates of audits and the draw behind them, on numbers alone."""

import numpy as np
import pytest

from memattn_jax.audit import strata, wording
from memattn_jax.audit.rates import CONFIDENCE, CONTROL, WIDTH, Share, combined, fewest_control, needed, rates_of, width
from memattn_jax.audit.truth import truth


def test_one_stratum_is_clopper_pearson():
    """Values of R's binom.test(3, 20) and of the closed form without successes."""
    rate, low, high = combined([Share(20, 20, 3), Share(0, 0, 0)])
    np.testing.assert_allclose((rate, low, high), (0.15, 0.032071, 0.378927), atol=1e-6)
    assert combined([Share(9, 5, 0)])[1:] == pytest.approx((0, 1 - 0.025 ** (1 / 5)))


def test_strata_cover_the_rate_of_the_log():
    """Of many draws, the interval misses in at most 5 %, whatever the shares."""
    rng = np.random.default_rng(0)
    sizes, rates, samples = (200, 1800), (0.9, 0.02), (100, 120)
    truth = np.dot(sizes, rates) / sum(sizes)
    missed = 0
    for _ in range(200):
        found = [
            Share(size, count, rng.binomial(count, rate))
            for size, rate, count in zip(sizes, rates, samples, strict=True)
        ]
        rate, low, high = combined(found)
        missed += not low <= truth <= high
        assert low <= rate <= high
    assert missed <= 0.05 * 200


def test_needed_is_what_makes_the_interval_narrow():
    found = [Share(50, 10, 9), Share(150, 10, 0)]
    assert width(found) > WIDTH
    count = needed(found)
    scale = count / 20
    enough = [Share(50, round(10 * scale), 9 * scale), Share(150, round(10 * scale), 0)]
    assert WIDTH * 0.97 < width(enough) <= WIDTH * 1.01
    assert needed([Share(50, 0, 0), Share(10, 3, 1)]) > 20


def test_a_control_without_memorized_prompts_adds_little():
    control = fewest_control()
    for size, within in ((control, True), (control - 1, False)):
        high = Share(10**6, size, 0).interval(1 - (1 - CONFIDENCE) / 2)[1]
        assert (high <= CONTROL) is within


def an_item(stratum, kind, memorized, copies=(None,), extracted=None):
    images = [{"copy": copy} for copy in copies]
    return {"stratum": stratum, "kind": kind, "memorized": memorized, "extracted": extracted, "images": images}


def test_rates_of_the_log_its_strata_and_kinds():
    items = [
        an_item("flagged", "a", True, (True, True, False, False), True),
        an_item("flagged", "b", None, (None, None)),
        an_item("not flagged", "a", False, (False, False, False, False), False),
    ]
    sizes = {("flagged", "a"): 1, ("flagged", "b"): 1, ("not flagged", "a"): 2}
    found = {(one["what"], one["of"], one["kind"]): one for one in rates_of(items, sizes, pictures=True)}
    assert found["memorized", "flagged", None]["samples"] == 1  # what could not be judged is no trial
    assert found["memorized", "log", None]["rate"] == pytest.approx(0.5)
    assert found["regurgitated", "flagged", "a"]["count"] == 0.5
    assert found["memorized", "log", "b"]["rate"] is None
    assert (found["memorized", "log", "b"]["low"], found["memorized", "log", "b"]["high"]) == (0, 1)
    assert ("memorized", "unknown", None) not in found
    assert not any(one["headline"] for one in found.values())
    assert all(one["needed"] > 3 for one in found.values() if one["of"] == "log")
    assert {one["what"] for one in rates_of(items, sizes, pictures=False)} == {"memorized"}


@pytest.mark.parametrize(
    ("stratum", "named"),
    [("flagged", "flagged prompts"), ("not flagged", "prompts that are not flagged"), ("unknown", "prompts without a")],
)
def test_a_stratum_without_finite_images_is_why_there_is_no_rate(stratum, named):
    """Not the width, where the others make the interval narrow."""
    others = [an_item("not flagged" if stratum != "not flagged" else "flagged", None, False)] * 60
    items = [an_item(stratum, None, None), *others]
    sizes = {(stratum, None): 1, (others[0]["stratum"], None): 99}
    said = wording.verdict(rates_of(items, sizes, pictures=False), 4)
    assert f"none of the sampled {named}" in said["refused"]
    assert "not known; it lies between" in said["sentence"]
    assert "wider than" not in said["refused"]
    few = wording.verdict(rates_of(others[:5], {(others[0]["stratum"], None): 99}, pictures=False), 4)
    assert "wider than 20 percentage points" in few["refused"]


def rows_of(verdicts, kinds=("a", "b")):
    for number, verdict in enumerate(verdicts):
        length = None if verdict is None else 5
        yield {"row": number, "length": length, "verdict": verdict, "kind": kinds[number % len(kinds)]}


def test_draw():
    verdicts = ["memorized"] * 30 + [None, "unknown"] + ["clean"] * 400
    drawn = strata.draw(rows_of(verdicts), 20, 0, "kind")
    assert {name: len(rows) for name, rows in drawn.rows.items()} == {"flagged": 20, "not flagged": 20, "unknown": 1}
    assert drawn.unscored == 1
    assert (drawn.total("flagged"), drawn.total("not flagged")) == (30, 400)
    assert drawn.sizes["flagged", "a"] == 15
    assert drawn.sampled() == sorted(set(drawn.sampled()))
    assert drawn == strata.draw(rows_of(verdicts), 20, 0, "kind")
    assert drawn != strata.draw(rows_of(verdicts), 20, 1, "kind")
    control = strata.draw(rows_of(verdicts), 1000, 0)
    assert len(control.rows["not flagged"]) == max(30, fewest_control())
    for most in (20, 300, 1000):
        everything = strata.draw(rows_of(verdicts), most, 0, everything=True)
        assert [len(rows) for rows in everything.rows.values()] == [min(most, 30), min(most, 400), 1]


def test_draw_is_uniform():
    counts = np.zeros(40)
    for seed in range(400):
        counts[strata.draw(rows_of(["clean"] * 40), 10, seed).rows["not flagged"]] += 1
    assert counts.sum() == 4000
    assert 60 < counts.min() <= counts.max() < 145  # 100 each, give or take four standard deviations


def test_truth():
    log = [("a", "memorized", True), ("b", "memorized", False), ("c", "decoys", True), ("d", "decoys", False)]
    items = [
        {"prompt": text, "kind": kind, "memorized": kind == "memorized" or text == "c", "extracted": text == "a"}
        for text, kind, _ in log
    ]
    rate = {"what": "extracted", "of": "log", "kind": None, "rate": 0.25, "low": 0.1, "high": 0.6}
    found = truth(items, [rate], log, {"a", "b"})
    assert (found["rates"][0]["known"], found["rates"][0]["within"]) == (0.5, True)
    assert found["flagged"] == {"memorized": {"prompts": 2, "found": 1}, "others": {"prompts": 2, "found": 1}}
    assert found["confirmed"]["others"] == found["memorized_by_kind"]["decoys"] == {"prompts": 2, "found": 1}
    assert found["extracted"]["memorized"] == {"prompts": 2, "found": 1}
    assert not truth(items, [rate | {"low": 0.51}], log, {"a", "b"})["rates"][0]["within"]
