"""What a scorer finds of a batch of prompts, and batches cut and joined."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np


@dataclass(frozen=True)
class Detection:
    """Scores of a batch of prompts.

    Attributes:
      prompts: the texts.
      scores: {detector: float32 [batch]}, larger where memorization is more likely. A row may be NaN; the others are
        unaffected.
      input_ids: int32 [batch, tokens].
      lengths: int [batch], begin and end token counted.
      attention: float32 [batch, tokens], share of the first step's attention, mean over pixels, heads and sites; None
        unless asked for.
      gradients: float32 [batch, tokens], ‖∂‖ε_c − ε_u‖₂ / ∂eᵢ‖₂ of each token's embedding eᵢ; None unless asked for.
      moves: float32 [batch, probes, steps], how far each step of a sampling run moved the latents; None without one.
    """

    prompts: tuple[str, ...]
    scores: dict[str, Any]
    input_ids: np.ndarray
    lengths: np.ndarray
    attention: Any = None
    gradients: Any = None
    moves: Any = None

    def __getitem__(self, detector: str) -> np.ndarray:
        """Scores of one detector, float32 [batch]."""
        return self.scores[detector]

    def fetch(self) -> "Detection":
        """The same in the host's memory, once the device is done."""
        arrays = jax.device_get((self.scores, self.attention, self.gradients, self.moves))
        scores, attention, gradients, moves = arrays
        ordered = {name: scores[name] for name in self.scores}  # device_get sorts by name
        return replace(self, scores=ordered, attention=attention, gradients=gradients, moves=moves)


def first_rows(detection: Detection, count: int) -> Detection:
    """Without the rows from `count` on."""
    return select(detection, np.arange(len(detection.prompts)) < count)


def select(detection: Detection, kept: np.ndarray) -> Detection:
    """Some of the rows, bool [batch]."""
    arrays = (detection.input_ids, detection.lengths, detection.attention, detection.gradients, detection.moves)
    return Detection(
        tuple(prompt for prompt, keep in zip(detection.prompts, kept, strict=True) if keep),
        {name: score[kept] for name, score in detection.scores.items()},
        *(None if array is None else array[kept] for array in arrays),  # type: ignore[arg-type]
    )


def concatenate(parts: Sequence[Detection]) -> Detection:
    """All rows of batches scored alike."""
    first = parts[0]
    return Detection(
        sum((part.prompts for part in parts), ()),
        {name: np.concatenate([part.scores[name] for part in parts]) for name in first.scores},
        np.concatenate([part.input_ids for part in parts]),
        np.concatenate([part.lengths for part in parts]),
        None if first.attention is None else np.concatenate([part.attention for part in parts]),
        None if first.gradients is None else np.concatenate([part.gradients for part in parts]),
        None if first.moves is None else np.concatenate([part.moves for part in parts]),
    )
