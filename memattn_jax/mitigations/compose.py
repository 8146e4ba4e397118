"""Several mitigations as one."""

from collections.abc import Sequence
from typing import Any

from jax import Array

from memattn_jax.checkpoints.tokenizer import Tokens
from memattn_jax.diffusion.mitigation import Mitigation, Prediction, Start, Step, overrides
from memattn_jax.errors import InputError
from memattn_jax.interceptors import Edit
from memattn_jax.pytree import as_pytree, pytree


def compose(*mitigations: Mitigation) -> "Composed":
    """A mitigation that applies others in order, each to what the one before it returned; edits add up.

    Raises:
      InputError: two of them have `alternatives`: which of the texts are whose could not be told.
    """
    if sum(overrides(each, "alternatives") for each in mitigations) > 1:
        raise InputError("two of the mitigations have alternatives of each prompt; compose with one of them")
    return Composed(tuple(map(as_pytree, mitigations)))


@pytree
class Composed(Mitigation):
    """See `compose`.

    Attributes:
      parts: the mitigations.
    """

    parts: tuple[Mitigation, ...]

    def overrides(self, method: str) -> bool:
        """Whether one of the parts changes what this method returns."""
        return any(overrides(part, method) for part in self.parts)

    def check(self) -> None:
        """Each by itself."""
        for part in self.parts:
            part.check()

    def fit(self, model: Any, **settings: Any) -> "Composed":
        """Each by itself."""
        return compose(*(part.fit(model, **settings) for part in self.parts))

    def prompts(self, prompts: Sequence[str], seeds: Sequence[int]) -> Sequence[str]:
        """See `Mitigation`; likewise the following."""
        for part in self.parts:
            prompts = part.prompts(prompts, seeds)
        return prompts

    def tokens(self, tokens: Tokens, seeds: Sequence[int], vocabulary: int) -> Tokens:
        """One after the other."""
        for part in self.parts:
            tokens = part.tokens(tokens, seeds, vocabulary)
        return tokens

    def alternatives(self, prompts: Sequence[str], seeds: Sequence[int]) -> Sequence[Sequence[str]]:
        """Those of the one part that has some; see `compose`."""
        for part in self.parts:
            if overrides(part, "alternatives"):
                return part.alternatives(prompts, seeds)
        return [()] * len(prompts)

    def embeddings(self, start: Start) -> Array:
        """One after the other."""
        for part in self.parts:
            start = start._replace(context=part.embeddings(start))
        return start.context

    def noise(self, start: Start) -> Array:
        """One after the other."""
        for part in self.parts:
            start = start._replace(noise=part.noise(start))
        return start.noise

    def edits(self, step: Step) -> tuple[Edit, ...]:
        """All of them, in order."""
        own = zip(self.parts, step.memory, strict=True)
        return sum((tuple(part.edits(step._replace(memory=memory))) for part, memory in own), ())

    def begin(self, start: Start) -> Any:
        """The memory of each."""
        return tuple(part.begin(start) for part in self.parts)

    def guidance(self, step: Step, prediction: Prediction, memory: Any) -> tuple[Prediction, Any]:
        """One after the other, each with its own memory."""
        kept = []
        for part, own in zip(self.parts, memory, strict=True):
            prediction, own = part.guidance(step._replace(memory=own), prediction, own)
            kept.append(own)
        return prediction, tuple(kept)

    def update(self, step: Step, moved: Array) -> Array:
        """One after the other."""
        for part, memory in zip(self.parts, step.memory, strict=True):
            moved = part.update(step._replace(memory=memory), moved)
        return moved

    def weights(self, unet: Any) -> Any:
        """One after the other."""
        for part in self.parts:
            unet = part.weights(unet)
        return unet
