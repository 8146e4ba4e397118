"""PRSS (Chen et al., CVPR 2025, arXiv 2504.18032): another wording, and guidance that passes from one to the other.

Of a prompt and its paraphrases the first c' with ‖f(x_T, c') − f(x_T, ∅)‖ ≤ `search` is taken, or the one where that is
smallest. At each step, with g the guidance scale and m = ‖ε_c' − ε_u‖:

    plain guidance by c'                                              where m ≤ limit, or c itself is within `search`
    ε = ε_c + s (ε_c' − ε_c) + (g − s) (ε_c' − ε_u)                   else
    s = min((m − k) / (margin − k) · g, g),   k = (g · limit − margin) / (g − 1)

Read in the authors' code. Cost: a forward of each wording and of the negative prompt before the run, a third forward
at every step. The paraphrases are yours; the authors asked a language model for 25 of each prompt.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from memattn_jax.detectors.noise_norm import norm
from memattn_jax.diffusion.mitigation import Mitigation, Prediction, Start, Step
from memattn_jax.errors import InputError
from memattn_jax.mitigations.descent import along
from memattn_jax.pytree import host_only, pytree
from memattn_jax.text import printable

FORM = '{"a prompt": ["another wording", "a third"]}'


@pytree
class ParaphraseGuidance(Mitigation):
    """See the module.

    Attributes:
      paraphrases: {prompt: paraphrases}; or a JSON file of that form. A prompt that is not among them keeps its
        wording, and its guidance falls where it triggers.
      search: of the wording, in the UNet's output at the first step; the authors' l_ss.
      limit: of the norm that triggers, their l_pr.
      margin: of the norm at which guidance is by difference of the wordings alone, their th.

    Raises:
      InputError: no paraphrases, or a table or a file of another form.
      FileNotFoundError: no such file.
    """

    paraphrases: Mapping[str, Sequence[str]] | str | Path = host_only(default="")
    search: float = 1.0
    limit: float = 3.0
    margin: float = 5.0

    def __post_init__(self) -> None:
        if isinstance(self.paraphrases, str | Path):
            object.__setattr__(self, "paraphrases", read_paraphrases(self.paraphrases))
        else:
            check_paraphrases(self.paraphrases, "paraphrases: expected a mapping")

    def alternatives(self, prompts: Sequence[str], seeds: Sequence[int]) -> Sequence[Sequence[str]]:
        """See `Mitigation.alternatives`."""
        assert isinstance(self.paraphrases, Mapping)
        return [self.paraphrases.get(prompt, ()) for prompt in prompts]

    def begin(self, start: Start) -> tuple[Array, Array]:
        """See `Mitigation.begin`: the wording's embeddings, and whether the prompt itself is over `search`."""
        assert start.alternatives is not None
        unconditional = start.predict(start.noise, start.negative)
        wordings = jnp.concatenate([start.context[:, None], start.alternatives], axis=1).swapaxes(0, 1)
        pulls = jax.lax.map(lambda context: norm(start.predict(start.noise, context) - unconditional), wordings)
        passing = pulls <= self.search
        chosen = jnp.where(passing.any(axis=0), jnp.argmax(passing, axis=0), jnp.argmin(pulls, axis=0))
        return jnp.take_along_axis(wordings, chosen[None, :, None, None], axis=0)[0], ~passing[0]

    def guidance(self, step: Step, prediction: Prediction, memory: Any) -> tuple[Prediction, Any]:
        """See `Mitigation.guidance`."""
        wording, triggered = memory
        other, plain, scale = step.predict(wording), prediction, prediction.scale
        pull = norm(other - plain.unconditional)
        knee = (scale * self.limit - self.margin) / jnp.where(scale == 1, jnp.inf, scale - 1)
        part = jnp.minimum((pull - knee) / (self.margin - knee) * scale, scale)
        part, rest = along(part, other), along(scale - part, other)
        between = plain.conditional + part * (other - plain.conditional) + rest * (other - plain.unconditional)
        guided = Prediction(other, plain.unconditional, scale).guided()
        result = jnp.where(along(triggered & (pull > self.limit), other), between, guided)
        return Prediction(result, result, jnp.ones_like(scale)), memory


def read_paraphrases(path: str | Path) -> dict[str, list[str]]:
    """Reads {prompt: paraphrases} from a JSON file; raises as `ParaphraseGuidance`."""
    if not str(path):
        raise InputError(f"paraphrase_guidance needs paraphrases=FILE, JSON such as {FORM}")
    where = printable(str(path), 60)
    try:
        table = json.loads(Path(path).read_bytes())  # of bytes, the encoding is detected
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON: {printable(str(error), 60)}") from None
    check_paraphrases(table, f"{where}: expected JSON")
    return table


def check_paraphrases(table: Any, expected: str) -> None:
    """Raises InputError unless a table is {prompt: paraphrases} of one prompt or more."""
    lists = list(table.values()) if isinstance(table, Mapping) else []
    wordings = [own if isinstance(own, Sequence) and not isinstance(own, str) else [None] for own in lists]
    if not lists or not all(isinstance(text, str) for text in chain(table, *wordings)):
        raise InputError(f"{expected} such as {FORM}")
