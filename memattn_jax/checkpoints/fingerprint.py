"""A hash of a model: equal for models that compute the same, wherever they were loaded from."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np


def fingerprint(parts: Sequence[Any], scheduler_config: dict) -> str:
    """Hashes the configs and weights of networks, as loaded, and a scheduler's config.

    Args:
      parts: networks, pytrees with a `config`.
      scheduler_config: parsed scheduler_config.json.

    Returns:
      32 hexadecimal digits.
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        config = part.config
        fields = vars(config)
        digest.update(json.dumps(fields, sort_keys=True, default=str).encode())
        for path, leaf in jax.tree_util.tree_leaves_with_path(part):
            array = np.asarray(leaf)
            name = jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).view(np.uint8).data)
    digest.update(json.dumps(scheduler_config, sort_keys=True).encode())
    return digest.hexdigest()
