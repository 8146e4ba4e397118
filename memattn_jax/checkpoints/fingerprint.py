"""A hash of a model: equal for models that compute the same, whatever container they were loaded from."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from memattn_jax.errors import InputError
from memattn_jax.models.configs import Config
from memattn_jax.registries import SCHEDULERS
from memattn_jax.schedulers.config import SchedulerConfig


def fingerprint(parts: Sequence[Any], scheduler_config: Mapping[str, Any], words: Mapping[str, Any]) -> str:
    """Hashes what a model computes with: its networks as loaded, its noise schedule, its words.

    Args:
      parts: networks, pytrees with a `config`.
      scheduler_config: parsed scheduler_config.json.
      words: see `Tokenizer.identity`.

    Returns:
      32 hexadecimal digits.
    """
    digest = hashlib.blake2b(digest_size=16)

    def add(content: Any) -> None:
        digest.update(json.dumps(content, sort_keys=True, default=str).encode())

    for part in parts:
        add(part.config.computed() if isinstance(part.config, Config) else vars(part.config))
        for path, leaf in jax.tree_util.tree_leaves_with_path(part):
            array = np.asarray(leaf)
            name = jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).view(np.uint8).data)
    add({scheduler: as_read_by(scheduler, scheduler_config) for scheduler in SCHEDULERS})
    add(words)
    return digest.hexdigest()


def as_read_by(scheduler: str, config: Mapping[str, Any]) -> Any:
    """The settings that a scheduler reads from a scheduler_config.json, or why it refuses it."""
    try:
        return vars(SchedulerConfig.from_json(config, scheduler))
    except InputError as error:
        return str(error)
