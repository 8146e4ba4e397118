"""How well scores tell memorized prompts from others."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline

RESAMPLES = 1000


class Auroc(NamedTuple):
    """An area under the ROC curve and its 95 % interval."""

    value: float
    low: float
    high: float


def auroc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Area under the ROC curve of scores of any shape; larger scores mean positive."""
    labels = np.repeat([1, 0], [positive.size, negative.size])
    return float(roc_auc_score(labels, np.concatenate([positive.ravel(), negative.ravel()])))


def auroc_interval(positive: np.ndarray, negative: np.ndarray) -> Auroc:
    """With an interval by bootstrap over prompts: scores are [prompts, seeds], and a prompt's seeds stay together."""
    rng = np.random.default_rng(0)
    drawn = [
        auroc(*(scores[rng.integers(len(scores), size=len(scores))] for scores in (positive, negative)))
        for _ in range(RESAMPLES)
    ]
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Auroc(auroc(positive, negative), float(low), float(high))


class Share(NamedTuple):
    """A share and its exact 95 % interval (Clopper and Pearson), all pictures counting as independent."""

    value: float
    low: float
    high: float


def share(hits: np.ndarray) -> Share:
    """The share of True in an array of any shape."""
    found, count = int(np.sum(hits)), np.size(hits)
    low = stats.beta.ppf(0.025, found, count - found + 1) if found else 0.0
    high = stats.beta.ppf(0.975, found + 1, count - found) if found < count else 1.0
    return Share(found / count, float(low), float(high))


class Choice(NamedTuple):
    """A site, a step and a sign; the score is sign · entropy."""

    site: str
    step: int
    sign: int


def choose(
    memorized: dict[str, np.ndarray],
    control: dict[str, np.ndarray],
    steps: Sequence[int],
    signs: Sequence[int] = (1, -1),
) -> Choice:
    """What separates best.

    Args:
      memorized: {site: entropy [prompts, seeds, steps]}.
      control: likewise.
      steps: to choose from.
      signs: likewise; +1 alone is how detectors read it.
    """
    values = {
        Choice(site, step, sign): auroc(sign * memorized[site][..., step], sign * control[site][..., step])
        for site in memorized
        for step in steps
        for sign in signs
    }
    return max(values, key=lambda choice: values[choice])


def text_scores(train: tuple[list[str], list[str]], test: list[list[str]]) -> list[np.ndarray]:
    """How memorized prompts look by their characters alone: logistic regression on counts of 1 to 3 characters.

    Args:
      train: memorized prompts and others to fit on.
      test: lists of prompts to score.

    Returns:
      For each list, log-odds [prompts, 1].
    """
    model = make_pipeline(CountVectorizer(analyzer="char_wb", ngram_range=(1, 3)), LogisticRegression(max_iter=1000))
    model.fit(train[0] + train[1], np.repeat([1, 0], [len(train[0]), len(train[1])]))
    return [model.decision_function(prompts)[:, None] for prompts in test]
