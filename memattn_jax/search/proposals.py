"""Which words a position of a prompt may take."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

Words = tuple[str, ...]


class Proposals(Protocol):
    """What a search changes prompts with; a masked language model of yours fits here.

    Called with all chains at once, so that a language model sees one batch.
    """

    def start(self, rng: np.random.Generator) -> Words:
        """The words that a new chain begins with."""

    def candidates(self, chains: Sequence[Words], positions: Sequence[int], rng: np.random.Generator) -> list[Words]:
        """Words for one position of each chain, any number of them; the present one need not be among them."""

    def text(self, words: Words) -> str:
        """The prompt that words stand for."""


@dataclass(frozen=True)
class Slots:
    """A list of words for every position; each candidate is as likely as any other.

    Attributes:
      words: of each position.
      most: candidates a step, drawn at random where a position has more.
      join: makes a prompt of words.
    """

    words: tuple[Words, ...]
    most: int = 64
    join: Callable[[Words], str] = " ".join

    def start(self, rng: np.random.Generator) -> Words:
        """One word of each position."""
        return tuple(str(rng.choice(words)) for words in self.words)

    def candidates(self, chains: Sequence[Words], positions: Sequence[int], rng: np.random.Generator) -> list[Words]:
        """See `Proposals.candidates`."""
        drawn = []
        for position in positions:
            words = self.words[position]
            drawn.append(tuple(map(str, rng.choice(words, min(self.most, len(words)), replace=False))))
        return drawn

    def text(self, words: Words) -> str:
        """See `Proposals.text`."""
        return self.join(words)
