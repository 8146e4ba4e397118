"""Prompts to token ids, with CLIP's tokenizer."""

import warnings
from collections.abc import Sequence
from itertools import count, takewhile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from memattn_jax.checkpoints.clip import END, clip_tokenizer
from memattn_jax.checkpoints.tokenizer_files import read_tokenizer
from memattn_jax.errors import InputError, RepeatedWarning
from memattn_jax.text import printable

LOST = 60  # characters of the removed text that the warning shows


class Tokens(NamedTuple):
    """Tokenized prompts.

    Attributes:
      input_ids: int32 [batch, tokens], padded.
      lengths: int32 [batch], number of tokens of each prompt, including begin and end token, without padding.
    """

    input_ids: np.ndarray
    lengths: np.ndarray


def placeholders(clip: Any) -> dict[int, tuple[int, ...]]:
    """{id of a token: ids of all that it stands for}, of tokens with several embeddings.

    As diffusers' `maybe_convert_prompt` does it, but on ids: there, a part of another word is replaced, too.
    """
    added = clip.added_tokens_encoder
    found = {}
    for token, first in added.items():
        others = takewhile(lambda number: number is not None, (added.get(f"{token}_{i}") for i in count(1)))
        if len(ids := (first, *others)) > 1:
            found[first] = ids
    return found


class Tokenizer:
    """CLIPTokenizer of a checkpoint. The padding token is the checkpoint's: the end token in SD 1, "!" in SD 2."""

    def __init__(self, folder: Path | None, tokens: int, pad: str = END, length: int = 77):
        """Reads vocab.json and merges.txt, or tokenizer.json.

        Args:
          folder: the checkpoint's `tokenizer`; None is CLIP's own vocabulary.
          tokens: places of the text encoder. Prompts are padded to as many or, where the tokenizer's `model_max_length`
            is less, to that, as in diffusers.
          pad: the padding token where the vocabulary is CLIP's own.
          length: its `model_max_length`, likewise.

        Raises:
          InputError: the folder has no tokenizer.
        """
        self.clip: Any = clip_tokenizer(pad, length) if folder is None else read_tokenizer(folder)
        self.tokens = min(tokens, self.clip.model_max_length)
        self.placeholders = placeholders(self.clip)

    def add(self, token: str, vectors: int) -> list[int]:
        """Adds a token that stands for one or several embeddings.

        Returns:
          The ids of its embeddings, those of "token", "token_1", "token_2" and so on.

        Raises:
          InputError: one of these is a token already, or differs from one in case alone, which prompts cannot tell
            apart; or it would become one more embedding of another token.
        """
        names = [token, *(f"{token}_{i}" for i in range(1, vectors))]
        known = self.clip.get_vocab()
        lower = {name.lower() for name in known}
        if clash := [name for name in (*names, f"{token}_{vectors}") if name.lower() in lower]:
            what = "a token" if clash[0] in known else "one but for its case"
            raise InputError(f"'{printable(clash[0], 40)}' is {what} already; name another for this embedding")
        added = self.clip.added_tokens_encoder
        longer = {f"{other}_{len(self.placeholders.get(first, (first,)))}": other for other, first in added.items()}
        if clash := [name for name in names if name in longer]:
            name, other = (printable(text, 40) for text in (clash[0], longer[clash[0]]))
            raise InputError(f"'{name}' would change what '{other}' stands for; name another for this embedding")
        self.clip.add_tokens(names)
        self.placeholders = placeholders(self.clip)
        return self.clip.convert_tokens_to_ids(names)

    def ids(self, prompt: str) -> list[int]:
        """Token ids of a prompt, any number, from the begin to the end token."""
        ids = self.clip(prompt, verbose=False)["input_ids"]
        return [each for number in ids for each in self.placeholders.get(number, (number,))]

    def __call__(self, prompts: Sequence[str]) -> Tokens:
        """Tokenizes and pads; prompts that are too long are cut, with a warning that shows what the first one lost."""
        end = self.clip.eos_token_id
        input_ids = np.full((len(prompts), self.tokens), self.clip.pad_token_id, np.int32)
        lengths = np.zeros(len(prompts), np.int32)
        lost: dict[str, str] = {}
        for row, prompt in enumerate(prompts):
            ids = self.ids(prompt)
            if len(ids) > self.tokens:
                lost[prompt] = self.clip.decode(ids[self.tokens - 1 : -1], clean_up_tokenization_spaces=False)
                ids = [*ids[: self.tokens - 1], end]
            input_ids[row, : len(ids)] = ids
            lengths[row] = len(ids)
        if lost:
            first = printable(next(iter(lost.values())), LOST)
            others = f"; and {len(lost) - 1} more" if len(lost) > 1 else ""
            message = f"prompt cut at {self.tokens} tokens, losing '{first}'{others}"
            warnings.warn(message, RepeatedWarning, stacklevel=2)
        return Tokens(input_ids, lengths)

    @property
    def size(self) -> int:
        """Rows that the text encoder's embedding must have: one more than the largest id."""
        return 1 + max(self.clip.get_vocab().values())

    def identity(self) -> dict[str, Any]:
        """The vocabulary and how prompts are padded, for a fingerprint."""
        return {"vocabulary": self.clip.get_vocab(), "tokens": self.tokens, "padding": self.clip.pad_token_id}

    def cuts(self, prompt: str) -> bool:
        """Whether a prompt is too long."""
        return len(self.ids(prompt)) > self.tokens

    def words(self, input_ids: np.ndarray) -> list[str]:
        """Each token of one row as text."""
        return [self.clip.decode([int(token)], clean_up_tokenization_spaces=False) for token in input_ids]
