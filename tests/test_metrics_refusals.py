"""Scores, rates and confidences that are none."""

import math

import numpy as np
import pytest

from memattn_jax.errors import InputError
from memattn_jax.evaluation.metrics import (
    auroc,
    auroc_interval,
    nearest_tpr_at_fpr,
    negatives_needed,
    roc_curve,
    threshold_at_fpr,
    tpr_at_fpr,
)

PAIRED = [
    auroc,
    auroc_interval,
    roc_curve,
    lambda memorized, clean: tpr_at_fpr(memorized, clean, 0.1),
    lambda memorized, clean: nearest_tpr_at_fpr(memorized, clean, 0.1),
]


@pytest.mark.parametrize("function", PAIRED)
@pytest.mark.parametrize(
    ("scores", "problem"),
    [
        (np.array([]), "metrics: no {} scores"),
        (np.array([1.0, math.nan, math.nan]), "metrics: 2 of 3 {} scores are NaN"),
        (np.ones((2, 1)), "metrics: {} scores of shape (2, 1)"),
    ],
)
def test_scores_that_are_none_are_refused(function, scores, problem):
    good = np.array([0.0, 1.0])
    for name, arguments in (("memorized", (scores, good)), ("clean", (good, scores))):
        with pytest.raises(InputError) as error:
            function(*arguments)
        assert str(error.value).startswith(problem.format(name))
    with pytest.raises(InputError) as error:
        threshold_at_fpr(scores, 0.1)
    assert str(error.value).startswith(problem.format("clean"))


@pytest.mark.parametrize("fpr", [-0.1, 1.01, math.nan])
def test_rates_that_are_none_are_refused(fpr):
    scores = np.array([0.0, 1.0])
    for call in (
        lambda: tpr_at_fpr(scores, scores, fpr),
        lambda: nearest_tpr_at_fpr(scores, scores, fpr),
        lambda: threshold_at_fpr(scores, fpr),
        lambda: negatives_needed(fpr),
    ):
        with pytest.raises(InputError, match=r"^metrics: false-positive rate .*between 0 and 1"):
            call()


def test_a_rate_of_0_needs_more_than_any_number():
    with pytest.raises(InputError, match=r"false-positive rate 0; .*above 0"):
        negatives_needed(0)


@pytest.mark.parametrize("confidence", [0, 1, 95, math.nan])
def test_a_confidence_that_is_none_is_refused(confidence):
    with pytest.raises(InputError, match=r"confidence .* above 0 and below 1"):
        auroc_interval(np.array([0.0, 1.0]), np.array([0.0, 1.0]), confidence)
