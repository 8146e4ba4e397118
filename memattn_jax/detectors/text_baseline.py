"""A baseline that looks at the prompt's characters alone, to show how much of a benchmark needs no model at all.

    score = share of words that begin with a capital letter + 2 · share of characters that are no letters

where white space is a character but not one that is no letter. It tells the reference's memorized prompts from its
clean ones with an AUROC of .99: memorized captions are titles from shops and news, clean prompts sentences. The text
encoder lower-cases, so no detector sees the capitals; they say that the sets differ in kind.
"""

from collections.abc import Sequence

import numpy as np

from memattn_jax.detectors.protocol import PromptDetector


def text_baseline(prompts: Sequence[str]) -> np.ndarray:
    """Score of each prompt, float32 [batch]; 0 for the empty prompt."""
    return np.asarray([capitals(prompt) + 2 * non_letters(prompt) for prompt in prompts], np.float32)


def capitals(prompt: str) -> float:
    """Share of words whose first character is a capital letter."""
    words = prompt.split()
    return sum(word[0].isupper() for word in words) / max(1, len(words))


def non_letters(prompt: str) -> float:
    """Share of characters that are neither letters nor white space."""
    return sum(not (character.isalpha() or character.isspace()) for character in prompt) / max(1, len(prompt))


class TextBaseline(PromptDetector):
    """See the module."""

    def score(self, prompts: Sequence[str]) -> np.ndarray:
        """See `text_baseline`."""
        return text_baseline(prompts)
