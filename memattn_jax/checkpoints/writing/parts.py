"""The tensors of a checkpoint's parts, checked against their configs, to be written one at a time."""

import numpy as np

from memattn_jax.checkpoints.checkpoint import Checkpoint, Part
from memattn_jax.checkpoints.filling import blank, match
from memattn_jax.checkpoints.names import Leaf, leaves
from memattn_jax.checkpoints.writing.safetensors_writer import Written
from memattn_jax.errors import InputError

Tensors = dict[str, Written]


def part_tensors(part: Part, dtype: np.dtype | None) -> Tensors:
    """The tensors of one part under PyTorch's names.

    Args:
      part: of a checkpoint.
      dtype: to convert to; None keeps each tensor's own.

    Raises:
      InputError: tensors that do not fit the config, see `filling.build`.
    """

    def written(leaf: Leaf, stored: np.ndarray) -> Written:
        def make() -> np.ndarray:
            changed = stored if part.change is None else part.change(leaf.name, stored)
            return changed.astype(dtype or stored.dtype, copy=False)

        return Written(stored.shape, dtype or stored.dtype, make)

    network = blank(part)
    found = match({leaf.name: leaf for leaf in leaves(network)}, part.tensors(), part.where)
    return {leaf.name: written(leaf, stored) for leaf, stored in found}


def checked_tensors(checkpoint: Checkpoint, dtype: np.dtype | None) -> dict[str, Tensors]:
    """Those of all parts; raises InputError with what is wrong in any of them."""
    found, problems = {}, []
    for name, part in checkpoint.parts.items():
        try:
            found[name] = part_tensors(part, dtype)
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputError("; ".join(dict.fromkeys(problems)))
    return found
