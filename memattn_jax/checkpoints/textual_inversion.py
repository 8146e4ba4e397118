"""Textual inversion (Gal et al., arXiv 2208.01618): files of a few text embeddings, which become tokens of their own.

| written by | content |
|---|---|
| diffusers | {token: [channels] or [vectors, channels]} |
| the original code, AUTOMATIC1111 | {"string_to_param": {"*": [vectors, channels]}, "name": token, …} |
| AUTOMATIC1111, kohya, as safetensors | {"emb_params": [vectors, channels]} |
| diffusers' advanced DreamBooth script | {"clip_l": [vectors, channels]} |

A file with several vectors becomes the tokens `token`, `token_1`, `token_2` and so on; `token` alone in a prompt stands
for all of them, as in diffusers' `load_textual_inversion`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from memattn_jax.checkpoints.checkpoint import Part
from memattn_jax.checkpoints.mapped import map_file
from memattn_jax.checkpoints.pickle_file import is_pickle, load_pickle
from memattn_jax.checkpoints.tensors import read_tensors
from memattn_jax.checkpoints.tokenizer import Tokenizer
from memattn_jax.errors import InputError
from memattn_jax.models.configs import CLIPTextConfig

NAMELESS = ("emb_params", "clip_l", "*")
MOST = 75  # vectors: the places that a prompt has between its begin and end token
TABLE = "embeddings.token_embedding.weight"


class Embedding(NamedTuple):
    """The vectors of one file.

    Attributes:
      path: names the file in errors.
      token: the text that stands for them in prompts.
      vectors: as stored, [vectors, channels].
    """

    path: Path
    token: str
    vectors: np.ndarray


def read_embedding(path: Path, token: str | None = None) -> Embedding:
    """Reads a textual inversion file (.safetensors, .pt, .bin).

    Args:
      path: the file.
      token: the text for prompts; None is the name stored in the file, or else the file's own.

    Raises:
      FileNotFoundError: no such file.
      InputError: another kind of file, several embeddings, or one for another family of models.
    """
    pickled = is_pickle(map_file(path)[:64].tobytes())
    name, vectors = find_vectors(load_pickle(path) if pickled else read_tensors(path).tensors, path)
    vectors = np.atleast_2d(vectors)
    if vectors.ndim != 2 or not 1 <= len(vectors) <= MOST or vectors.dtype.kind not in "fV":
        shape = f"{vectors.dtype} {list(vectors.shape)}"
        raise InputError(f"{path}: not a textual inversion, whose vectors are [1 to {MOST}, channels], but {shape}")
    token = name if token is None else token
    if not token.strip():
        raise InputError(f"{path}: its token is blank; name one")
    return Embedding(path, token, vectors)


def find_vectors(content: Any, path: Path) -> tuple[str, np.ndarray]:
    """The token and the vectors in a file's content; raises InputError where there are none, or several."""
    if isinstance(content, np.ndarray):
        return path.stem, content
    if not isinstance(content, Mapping):
        raise InputError(f"{path}: not a textual inversion file")
    name = content.get("name")
    if isinstance(content.get("string_to_param"), Mapping):
        content = content["string_to_param"]
        if len(content) == 1 and isinstance(name, str):
            content = {name: next(iter(content.values()))}
    if "clip_g" in content:
        raise InputError(f"{path}: was made for SDXL, which is not supported")
    found = {key: value for key, value in content.items() if isinstance(value, np.ndarray)}
    if len(found) != 1:
        raise InputError(f"{path}: not a textual inversion file, which holds one tensor; it has {len(found)}")
    ((token, vectors),) = found.items()
    return path.stem if token in NAMELESS or not isinstance(token, str) else token, vectors


def with_embeddings(part: Part, tokenizer: Tokenizer, embeddings: Sequence[Embedding]) -> Part:
    """The text encoder with rows for the tokens, which the tokenizer learns, too.

    Raises:
      InputError: a token that the tokenizer knows already, or vectors of another model's size.
    """
    config = part.config
    assert isinstance(config, CLIPTextConfig)
    rows: dict[int, np.ndarray] = {}
    for path, token, vectors in embeddings:
        if vectors.shape[1] != config.hidden_size:
            raise InputError(
                f"{path}: has {vectors.shape[1]} channels, the text encoder {config.hidden_size}: it was made for "
                "another family of models"
            )
        try:
            ids = tokenizer.add(token, len(vectors))
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        rows |= dict(zip(ids, vectors, strict=True))
    if not rows:
        return part
    size = max(config.vocab_size, max(rows) + 1)

    def tensors() -> dict[str, np.ndarray]:
        found = dict(part.tensors())
        for name, table in list(found.items()):
            # a table of another size stays, for `match` to refuse
            if name.endswith(TABLE) and table.shape == (config.vocab_size, config.hidden_size):
                found[name] = np.concatenate([table, np.zeros((size - len(table), config.hidden_size), table.dtype)])
        return found

    def change(name: str, stored: np.ndarray) -> np.ndarray:
        known = stored[: config.vocab_size] if name.endswith(TABLE) else stored
        changed = known if part.change is None else part.change(name, known)
        if not name.endswith(TABLE):
            return changed
        table = np.zeros(stored.shape, np.float32)  # the vectors may be more exact than the stored table
        table[: config.vocab_size] = changed
        table[list(rows)] = list(rows.values())
        return table

    return replace(part, config=replace(config, vocab_size=size), tensors=tensors, change=change, orbax=None)
