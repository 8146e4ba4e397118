"""Whether prompts are of the kind that a calibration's clean prompts are, since its rates hold for no other kind.

Each prompt is described by a few numbers of its text and its tokens. The distribution of each over a log is compared
with that over the clean prompts by the two-sample test of Kolmogorov and Smirnov, Bonferroni's correction between them.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

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
ORDER = "new pairs of known tokens"


@dataclass(frozen=True)
class Kind:
    """What clean prompts are like.

    Attributes:
      statistics: {name: of each clean prompt, float32 [clean]}. `ORDER` is the share of its neighbouring tokens, both
        of them in other clean prompts too, that are neighbours in no other one.
      pairs: neighbouring tokens of all clean prompts.
    """

    statistics: dict[str, np.ndarray]
    pairs: frozenset[tuple[int, int]]

    @classmethod
    def of(cls, texts: Sequence[str], ids: Sequence[Ids]) -> "Kind":
        """Describes clean prompts, given as text and as tokens."""
        tokens = Counter(token for row in ids for token in set(row))
        neighbours = Counter(pair for row in ids for pair in set(pairwise(row)))
        new = [
            [neighbours[pair] == 1 for pair in pairwise(row) if min(tokens[pair[0]], tokens[pair[1]]) > 1]
            for row in ids
        ]
        return cls(describe(texts, ids) | {ORDER: share(new)}, frozenset(neighbours))

    def differences(self, texts: Sequence[str], ids: Sequence[Ids]) -> list[str]:
        """Names of the statistics in which these prompts, at least one, differ from the clean ones."""
        from scipy import stats  # half a second to import

        known = {token for pair in self.pairs for token in pair}
        new = [[pair not in self.pairs for pair in pairwise(row) if known.issuperset(pair)] for row in ids]
        values = describe(texts, ids) | {ORDER: share(new)}
        level = LEVEL / len(values)
        return [name for name, found in values.items() if stats.ks_2samp(self.statistics[name], found).pvalue < level]


def describe(texts: Sequence[str], ids: Sequence[Ids]) -> dict[str, np.ndarray]:
    """`STATISTICS` of prompts, float32 [prompts] each."""
    rows = list(zip(texts, ids, strict=True))
    return {name: np.array([of(*row) for row in rows], np.float32) for name, of in STATISTICS.items()}


def share(rows: Sequence[Sequence[bool]]) -> np.ndarray:
    """How much of each row is true, float32 [rows]; 0 of an empty one."""
    return np.array([sum(row) / max(1, len(row)) for row in rows], np.float32)
