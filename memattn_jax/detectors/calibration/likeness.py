"""Whether prompts resemble a calibration's clean prompts, since its rates hold only for such prompts.

Each prompt is described by a few numbers of its text and its tokens. The distribution of each over a log is compared
with that over the clean prompts by the two-sample test of Kolmogorov and Smirnov, Bonferroni's correction between them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from memattn_jax.detectors.text_baseline import capitals, non_letters

LEVEL = 0.001  # chance of a warning about a log that is of the same kind

Ids = Sequence[int]  # of a prompt's own tokens, without begin, end and padding


STATISTICS: dict[str, Callable[[str, Ids], float]] = {
    "number of tokens": lambda text, ids: len(ids),
    "tokens a word": lambda text, ids: len(ids) / max(1, len(text.split())),
    "letters a word": lambda text, ids: len(text) / max(1, len(text.split())),
    "capitals": lambda text, ids: capitals(text),
    "characters that are no letters": lambda text, ids: non_letters(text),
}


@dataclass(frozen=True)
class Kind:
    """Statistics of clean prompts.

    Attributes:
      statistics: {name: of each clean prompt, float32 [clean]}.
    """

    statistics: dict[str, np.ndarray]

    @classmethod
    def of(cls, texts: Sequence[str], ids: Sequence[Ids]) -> "Kind":
        """Describes clean prompts, given as text and as tokens."""
        return cls(describe(texts, ids))

    def differences(self, texts: Sequence[str], ids: Sequence[Ids]) -> list[str]:
        """Names of the statistics in which these prompts, at least one, differ from the clean ones."""
        from scipy import stats  # half a second to import

        values = describe(texts, ids)
        level = LEVEL / len(values)
        return [name for name, found in values.items() if stats.ks_2samp(self.statistics[name], found).pvalue < level]


def describe(texts: Sequence[str], ids: Sequence[Ids]) -> dict[str, np.ndarray]:
    """`STATISTICS` of prompts, float32 [prompts] each."""
    rows = list(zip(texts, ids, strict=True))
    return {name: np.array([of(*row) for row in rows], np.float32) for name, of in STATISTICS.items()}
