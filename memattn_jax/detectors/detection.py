"""Scores of a batch of prompts, and how batches are cut and joined."""

from collections.abc import Sequence
from dataclasses import field, replace
from typing import Any

import jax
import numpy as np

from memattn_jax.pytree import pytree, static


@pytree
class Detection:
    """Scores of a batch of prompts, a pytree.

    Attributes:
      prompts: the texts.
      scores: {detector: float32 [batch]}, larger where memorization is more likely. A row may be NaN; the others are
        unaffected.
      input_ids: int32 [batch, tokens].
      lengths: int32 [batch], begin and end token counted.
      attention: float32 [batch, tokens], share of the first step's attention, mean over pixels, heads and sites; None
        unless asked for.
      gradients: float32 [batch, tokens], ‖∂‖ε_c − ε_u‖₂ / ∂eᵢ‖₂ of each token's embedding eᵢ; None unless asked for.
      kept: {detector: tree of [batch, probes, steps, ...]}, what detectors that are not fitted yet are to be fitted on.
    """

    prompts: tuple[str, ...] = static()
    scores: dict[str, Any]
    input_ids: Any
    lengths: Any
    attention: Any = None
    gradients: Any = None
    kept: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, detector: str) -> np.ndarray:
        """Scores of one detector, float32 [batch]."""
        return self.scores[detector]

    def __repr__(self) -> str:
        return f"Detection({len(self.prompts)} prompts: {', '.join(self.scores)})"

    def fetch(self) -> "Detection":
        """The same in the host's memory, once the device is done."""
        fetched = jax.device_get(self)
        return replace(fetched, scores={name: fetched.scores[name] for name in self.scores})  # which JAX sorts by name


def first_rows(detection: Detection, count: int) -> Detection:
    """Without the rows from `count` on."""
    return select(detection, np.arange(len(detection.prompts)) < count)


def select(detection: Detection, chosen: np.ndarray) -> Detection:
    """Some of the rows, bool [batch]."""
    prompts = tuple(prompt for prompt, keep in zip(detection.prompts, chosen, strict=True) if keep)
    rows = jax.tree.map(lambda array: array[chosen], detection)
    return replace(rows, prompts=prompts, scores={name: rows.scores[name] for name in detection.scores})


def concatenate(parts: Sequence[Detection]) -> Detection:
    """All rows of batches scored alike."""
    prompts = sum((part.prompts for part in parts), ())
    same = [replace(part, prompts=()) for part in parts]  # which are part of a tree's structure
    joined = jax.tree.map(lambda *arrays: np.concatenate(arrays), *same)
    return replace(joined, prompts=prompts, scores={name: joined.scores[name] for name in parts[0].scores})
