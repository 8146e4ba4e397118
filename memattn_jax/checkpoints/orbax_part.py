"""One network in Orbax, which JAX restores straight to the devices that it is split over."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from memattn_jax.errors import InputError


def orbax() -> Any:
    """The library, a second of imports; raises InputError where it is not installed."""
    try:
        import orbax.checkpoint
    except ImportError:
        raise InputError("Orbax checkpoints need Orbax: pip install 'memattn-jax[train]'") from None
    return orbax.checkpoint


def write_orbax(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays, whole or not at all.

    Args:
      folder: must not exist.
      arrays: {PyTorch's name of a parameter: array in our layout}.
    """
    with orbax().StandardCheckpointer() as checkpointer:
        checkpointer.save(folder.absolute(), dict(arrays))


def restore_orbax(folder: Path, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Reads arrays in the dtypes and to the places that are wanted; each device reads no more than its own.

    Args:
      folder: see `write_orbax`.
      wanted: {name: shape, dtype and sharding}.

    Raises:
      InputError: arrays are missing, surplus or misshapen, or the checkpoint is damaged.
    """
    shapes = stored_shapes(folder)
    problems = [f"missing {name}" for name in wanted.keys() - shapes.keys()]
    problems += [f"unexpected {name}" for name in shapes.keys() - wanted.keys()]
    problems += [
        f"misshapen {name} {list(shapes[name])}, not {list(wanted[name].shape)}"
        for name in wanted.keys() & shapes.keys()
        if shapes[name] != wanted[name].shape
    ]
    if problems:
        raise InputError(f"{folder}: arrays at odds with the config: {'; '.join(sorted(problems))}")
    with orbax().StandardCheckpointer() as checkpointer:
        return checkpointer.restore(folder.absolute(), dict(wanted))


def read_orbax(folder: Path) -> dict[str, np.ndarray]:
    """Reads all arrays into this machine's memory, in the dtypes they are stored in; errors as of `restore_orbax`."""
    ocp = orbax()
    arguments = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in stored_shapes(folder)}
    with ocp.PyTreeCheckpointer() as checkpointer:
        return checkpointer.restore(folder.absolute(), restore_args=arguments)


def stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """{name: shape} of what a checkpoint holds; raises InputError for a damaged one."""
    try:
        with orbax().StandardCheckpointer() as checkpointer:
            stored = checkpointer.metadata(folder.absolute()).item_metadata.tree
        return {name: tuple(array.shape) for name, array in stored.items()}
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{folder}: not a complete Orbax checkpoint ({str(error).splitlines()[0][:100]})") from None
