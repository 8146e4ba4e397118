"""The tensors of a network in Orbax under PyTorch's names and in its layout, and back."""

from pathlib import Path

import numpy as np

from memattn_jax.checkpoints.checkpoint import Part
from memattn_jax.checkpoints.filling import blank
from memattn_jax.checkpoints.names import leaves
from memattn_jax.checkpoints.orbax_part import read_orbax, write_orbax
from memattn_jax.checkpoints.writing.parts import Tensors
from memattn_jax.models.config import Config


def read_tensors_of(config: Config, folder: Path) -> dict[str, np.ndarray]:
    """Views of the arrays, which are all read; raises InputError for a checkpoint that does not fit its config."""
    found = {leaf.name: leaf for leaf in leaves(blank(Part(str(folder), config, dict)))}
    arrays = read_orbax(folder, {name: leaf.param.shape for name, leaf in found.items()})
    return {name: array.transpose(found[name].axes) for name, array in arrays.items()}


def write_tensors_of(part: Part, folder: Path, tensors: Tensors) -> None:
    """Writes them; see `write_orbax`."""
    axes = {leaf.name: np.argsort(leaf.axes) for leaf in leaves(blank(part))}
    write_orbax(folder, ((name, tensor.make().transpose(axes[name])) for name, tensor in tensors.items()))
