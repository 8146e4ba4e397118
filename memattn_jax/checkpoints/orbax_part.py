"""One network in Orbax, which JAX restores straight to the devices that it is split over."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from memattn_jax.checkpoints.mapped import forget
from memattn_jax.errors import InputError

GROUP = 2**28  # bytes of arrays in one checkpoint, of which Orbax makes two copies while it writes


def orbax() -> Any:
    """The library, a second of imports; raises InputError where it is not installed."""
    try:
        import orbax.checkpoint
    except ImportError:
        raise InputError("Orbax checkpoints need Orbax: pip install 'memattn-jax[train]'") from None
    return orbax.checkpoint


def write_orbax(folder: Path, arrays: Iterable[tuple[str, np.ndarray]]) -> None:
    """Writes arrays as a few checkpoints, each a dictionary and each whole or absent.

    Args:
      folder: made where there is none.
      arrays: PyTorch's name of a parameter, and the array in our layout; taken as they are written.
    """
    group: dict[str, np.ndarray] = {}
    count = 0
    with orbax().StandardCheckpointer() as checkpointer:

        def write() -> None:
            checkpointer.save(folder.absolute() / f"{count:03}", group)
            checkpointer.wait_until_finished()
            for array in group.values():
                forget(array)

        for name, array in arrays:
            if group and sum(each.nbytes for each in group.values()) + array.nbytes > GROUP:
                write()
                group, count = {}, count + 1
            group[name] = array
        write()


def restore_orbax(folder: Path, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Reads arrays in the dtypes and to the places that are wanted; each device reads no more than its own.

    Args:
      folder: see `write_orbax`.
      wanted: {name: shape, dtype and sharding}.

    Raises:
      InputError: arrays are missing, surplus or misshapen, or a checkpoint is damaged.
    """
    groups = stored_shapes(folder)
    shapes = {name: shape for group in groups.values() for name, shape in group.items()}
    problems = [f"missing {name}" for name in wanted.keys() - shapes.keys()]
    problems += [f"unexpected {name}" for name in shapes.keys() - wanted.keys()]
    problems += [
        f"misshapen {name} {list(shapes[name])}, not {list(wanted[name].shape)}"
        for name in wanted.keys() & shapes.keys()
        if shapes[name] != wanted[name].shape
    ]
    if problems:
        raise InputError(f"{folder}: arrays at odds with the config: {'; '.join(sorted(problems))}")
    found: dict[str, jax.Array] = {}
    with damaged(folder), orbax().StandardCheckpointer() as checkpointer:
        for path, group in groups.items():
            found |= checkpointer.restore(path, {name: wanted[name] for name in group})
    return found


def read_orbax(folder: Path) -> dict[str, np.ndarray]:
    """Reads all arrays into this machine's memory, in the dtypes they are stored in; errors as of `restore_orbax`."""
    ocp = orbax()
    found: dict[str, np.ndarray] = {}
    groups = stored_shapes(folder)
    with damaged(folder), ocp.PyTreeCheckpointer() as checkpointer:
        for path, group in groups.items():
            arguments = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in group}
            found |= checkpointer.restore(path, restore_args=arguments)
    return found


def stored_shapes(folder: Path) -> dict[Path, dict[str, tuple[int, ...]]]:
    """{checkpoint: {name: shape of an array in it}}; raises InputError for a damaged one."""
    with damaged(folder), orbax().StandardCheckpointer() as checkpointer:
        groups = {path: checkpointer.metadata(path).item_metadata.tree for path in sorted(folder.absolute().iterdir())}
        return {path: {name: tuple(a.shape) for name, a in group.items()} for path, group in groups.items()}


@contextlib.contextmanager
def damaged(folder: Path) -> Iterator[None]:
    """Turns what Orbax and TensorStore raise for a damaged checkpoint into an InputError."""
    try:
        yield
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"{folder}: not a complete Orbax checkpoint ({reason[0][:100]})") from None
