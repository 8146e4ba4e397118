"""Tokens with more attention than tokens of the same kind have in clean prompts.

A prompt's tokens are of four kinds: the begin token, the prompt's own, the end token, and the padding, whose attention
is summed, so that it is one entry of a listing. An entry stands out where its share of the attention, against the mean
share in clean prompts, is larger than what 95 % of clean prompts show anywhere among their tokens of that kind, and
larger than 1. The paper's trigger tokens are those that attention concentrates on when a memorized prompt is generated
(Ren et al., ECCV 2024, arXiv 2403.11052); which kinds they are of differs between models.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

QUANTILE = 0.95  # of clean prompts in which nothing of a kind stands out
KINDS = ("begin", "prompt", "end", "padding")


def listed(values: np.ndarray, length: int) -> np.ndarray:
    """Each token's share and, where there is padding, its sum as one more: float [tokens] to float [entries].

    Args:
      values: shares of the attention.
      length: tokens of the prompt, begin and end token counted.
    """
    return values if length == len(values) else np.append(values[:length], values[length:].sum())


def labels(words: Sequence[str], padding: int) -> list[str]:
    """Names of the entries of a listing.

    Args:
      words: tokens of the prompt as text, begin and end token among them.
      padding: how many tokens of padding follow.
    """
    return ["<begin>", *words[1:-1], "<end>", *([f"<padding ×{padding}>"] if padding else [])]


def kinds(length: int, entries: int) -> np.ndarray:
    """The kind of each entry of a listing, as its place in `KINDS`: int [entries]."""
    numbers = np.ones(entries, int)
    numbers[0], numbers[length - 1], numbers[length:] = 0, 2, 3
    return numbers


def standing_out(tokens: Sequence[str], excess: Sequence[float | None], blamed: Sequence[str]) -> list[int]:
    """Places in a listing of the tokens that stand out, in the order of `blamed`, which may name a repeated token once.

    Args:
      tokens: names of the entries.
      excess: of each; None where it is not finite.
      blamed: names of those that stand out, largest excess first, each as often as it does.
    """
    found: list[int] = []
    for name in blamed:
        left = [place for place, token in enumerate(tokens) if token == name and place not in found]
        found.append(max(left, key=lambda place: excess[place] or 0.0))
    return found


@dataclass(frozen=True)
class CleanAttention:
    """Attention shares of the tokens of clean prompts.

    Attributes:
      means: of one entry of each kind, {kind: share}; 0 where clean prompts had none.
      positions: mean share of a prompt's own token at each position, float32 [tokens]; where no clean prompt reaches,
        `means["prompt"]`.
      margins: the ratio to the mean that 95 % of clean prompts stay at or below with all entries of a kind, {kind:
        ratio}; at least 1.
    """

    means: dict[str, float]
    positions: np.ndarray
    margins: dict[str, float]

    @classmethod
    def fit(cls, attention: np.ndarray, lengths: np.ndarray) -> "CleanAttention":
        """From clean prompts.

        Args:
          attention: float32 [rows, tokens], finite, see `Detection`.
          lengths: int [rows], begin and end token counted.
        """
        rows = [listed(row, length) for row, length in zip(attention, lengths, strict=True)]
        of = [kinds(length, len(row)) for row, length in zip(rows, lengths, strict=True)]
        shares, every = np.concatenate(rows), np.concatenate(of)
        means = {kind: float(shares[every == i].mean()) if (every == i).any() else 0.0 for i, kind in enumerate(KINDS)}
        places = np.arange(attention.shape[1])
        own = (places > 0) & (places < lengths[:, None] - 1)
        count = own.sum(axis=0)
        at = np.where(own, attention, 0).sum(axis=0) / np.maximum(1, count)
        positions = np.where(count > 0, at, means["prompt"]).astype(np.float32)
        clean = cls(means, positions, dict.fromkeys(KINDS, 1.0))
        ratios = [clean.excess(row, length) for row, length in zip(rows, lengths, strict=True)]
        for i, kind in enumerate(KINDS):
            largest = [ratio[of == i].max() for ratio, of in zip(ratios, of, strict=True) if (of == i).any()]
            if largest:
                clean.margins[kind] = max(1.0, float(np.quantile(largest, QUANTILE, method="higher")))
        return clean

    def excess(self, shares: np.ndarray, length: int) -> np.ndarray:
        """Each entry's share of the attention against the clean mean of its kind and position, float32 [entries].

        0 where clean prompts had no entry of the kind.
        """
        mean = np.array([self.means[kind] for kind in KINDS])[kinds(length, len(shares))]
        mean[1 : length - 1] = self.positions[1 : length - 1]
        return np.divide(shares, mean, out=np.zeros(len(shares)), where=mean > 0).astype(np.float32)

    def stand_out(self, excess: np.ndarray, length: int) -> np.ndarray:
        """Entries that stand out, largest first: int [any]."""
        margin = np.array([self.margins[kind] for kind in KINDS])[kinds(length, len(excess))]
        order = np.argsort(-excess, kind="stable")
        return order[excess[order] > margin[order]]
