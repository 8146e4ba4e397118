"""Which tokens of a prompt are drawn, and what they are called."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from memattn_jax.errors import InputError
from memattn_jax.heatmaps import ROLES, token_mask
from memattn_jax.report.figures.rendering import TOKEN, as_label
from memattn_jax.text import printable

if TYPE_CHECKING:
    from memattn_jax.checkpoints.tokenizer import Tokenizer


class Shown(NamedTuple):
    """One token, or several whose attention is added up.

    Attributes:
      label: as it is drawn.
      mask: bool [tokens].
      summary: whether these are summary tokens, the end token or the padding.
    """

    label: str
    mask: np.ndarray
    summary: bool = False


def shown_tokens(
    tokenizer: "Tokenizer", input_ids: np.ndarray, length: int, wanted: Sequence[str] | None = None
) -> list[Shown]:
    """The tokens of one prompt that are drawn.

    Args:
      tokenizer: the model's.
      input_ids: int [tokens], padded.
      length: tokens of the prompt, begin and end token counted.
      wanted: roles of `memattn_jax.heatmaps.ROLES`, places, or words of the prompt, each time that they occur; a word
        may be several tokens. None is the begin token, each of the prompt's, the end token and the padding together.

    Returns:
      In the order of `wanted`; empty where the prompt has none of them.
    """
    count = len(input_ids)
    texts = tokenizer.words(input_ids[:length])

    def of_role(role: str) -> Shown:
        mask = token_mask(role, np.array([length]), count)[0]
        label = f"padding × {count - length}" if role == "padding" else role
        return Shown(label, mask, role in ("end", "padding", "summary"))

    def of_places(places: Sequence[int], text: str) -> Shown:
        if list(places) in ([0], [length - 1]):
            return of_role("begin" if places[0] == 0 else "end")
        return Shown(as_label(text, TOKEN), np.isin(np.arange(count), places))

    if wanted is None:
        words = [of_places([place], texts[place]) for place in range(1, length - 1)]
        found = [of_role("begin"), *words, of_role("end"), of_role("padding")]
    else:
        found = []
        for name in wanted:
            if name in ROLES:
                found.append(of_role(name))
            elif name.isdecimal():
                places = [int(name)] if int(name) < length else []
                found += [of_places(places, texts[place]) for place in places]
            else:
                found += [of_places(places, name) for places in places_of(tokenizer, input_ids[:length], name)]
    return [shown for shown in found if shown.mask.any()]


def places_of(tokenizer: "Tokenizer", ids: np.ndarray, word: str) -> list[list[int]]:
    """Where a word or several stand in a prompt: the places of their tokens, each time that they occur."""
    own = tokenizer.ids(word)[1:-1]
    starts = [place for place in range(1, len(ids) - len(own)) if own and ids[place : place + len(own)].tolist() == own]
    return [list(range(start, start + len(own))) for start in starts]


def check_tokens(tokenizer: "Tokenizer", prompts: Sequence[str], wanted: Sequence[str]) -> None:
    """Raises InputError for a name that none of the prompts has, and for a prompt that has none of the names."""
    tokens = tokenizer(prompts)
    for name in wanted:
        rows = zip(tokens.input_ids, tokens.lengths, strict=True)
        if not any(shown_tokens(tokenizer, ids, int(length), [name]) for ids, length in rows):
            roles = ", ".join(ROLES)
            raise InputError(
                f"--tokens {printable(name, 40)}: in none of the prompts; expected words of them, places, or {roles}"
            )
    for prompt, ids, length in zip(prompts, tokens.input_ids, tokens.lengths, strict=True):
        if not any(shown.mask.any() for shown in shown_tokens(tokenizer, ids, int(length), wanted)):
            raise InputError(f"--tokens: '{printable(prompt, 60)}' has none of them; draw it apart")
