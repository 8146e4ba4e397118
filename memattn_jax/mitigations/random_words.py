"""Prompts changed at random (Somepalli et al., NeurIPS 2023, arXiv 2305.20086): the mildest mitigations, at no cost.

    RandomTokens     tokens of the whole vocabulary, at random places
    RandomNumbers    numbers below 100,000, at random places
    RepeatedWords    words of the prompt once more, at random places

A row's changes depend on its seed alone. The authors insert the text of a random token among the words and tokenize
again; here the token itself is inserted, between tokens.
"""

from collections.abc import Callable, Sequence

import numpy as np

from memattn_jax.checkpoints.tokenizer import Tokens
from memattn_jax.diffusion.mitigation import Mitigation
from memattn_jax.pytree import pytree

NUMBERS = 100_000
Draw = Callable[[np.random.Generator, list[str]], str]


@pytree
class RandomTokens(Mitigation):
    """See the module; what the text encoder's length does not hold any more is cut.

    Attributes:
      count: tokens to insert; the authors try 1, 2, 4, 6 and 8.
    """

    count: int = 4

    def tokens(self, tokens: Tokens, seeds: Sequence[int], vocabulary: int) -> Tokens:
        """See `Mitigation.tokens`. Begin and end token are none of those inserted."""
        most = tokens.input_ids.shape[1]
        ids, lengths = tokens.input_ids.copy(), tokens.lengths.copy()
        for row, seed in enumerate(seeds):
            rng = np.random.default_rng(seed)
            begin, *words, end = ids[row, : lengths[row]].tolist()
            usable = np.setdiff1d(np.arange(vocabulary), [begin, end])
            for _ in range(int(self.count)):
                words.insert(rng.integers(len(words) + 1), int(rng.choice(usable)))
            changed = [begin, *words[: most - 2], end]
            ids[row, : len(changed)], lengths[row] = changed, len(changed)
        return Tokens(ids, lengths)


@pytree
class RandomNumbers(Mitigation):
    """See the module.

    Attributes:
      count: numbers to insert.
    """

    count: int = 4

    def prompts(self, prompts: Sequence[str], seeds: Sequence[int]) -> Sequence[str]:
        """See `Mitigation.prompts`."""

        def number(rng: np.random.Generator, words: list[str]) -> str:
            return str(rng.integers(NUMBERS))

        return [inserted(*row, int(self.count), number) for row in zip(prompts, seeds, strict=True)]


@pytree
class RepeatedWords(Mitigation):
    """See the module.

    Attributes:
      count: words to insert.
    """

    count: int = 4

    def prompts(self, prompts: Sequence[str], seeds: Sequence[int]) -> Sequence[str]:
        """See `Mitigation.prompts`."""

        def own(rng: np.random.Generator, words: list[str]) -> str:
            return words[rng.integers(len(words))]

        return [inserted(*row, int(self.count), own) for row in zip(prompts, seeds, strict=True)]


def inserted(prompt: str, seed: int, count: int, draw: Draw) -> str:
    """A prompt with `count` words that `draw(rng, words of the prompt)` gives, each at a random place."""
    rng, own = np.random.default_rng(seed), prompt.split()
    words = list(own)
    for _ in range(count if own else 0):
        words.insert(rng.integers(len(words) + 1), draw(rng, own))
    return " ".join(words) if own else prompt
