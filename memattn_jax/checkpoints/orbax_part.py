"""One network in Orbax, which JAX restores straight to the devices that it is split over."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from memattn_jax.checkpoints.json_file import read_json
from memattn_jax.checkpoints.mapped import forget
from memattn_jax.errors import InputError, listed
from memattn_jax.text import counted, printable

METADATA = ("_METADATA", "_CHECKPOINT_METADATA")  # JSON, which names the arrays
SHOWN = 120  # characters of the arrays that do not fit
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
    groups = matching(folder, {name: array.shape for name, array in wanted.items()})
    found: dict[str, jax.Array] = {}
    with damaged(folder), orbax().StandardCheckpointer() as checkpointer:
        for path, group in groups.items():
            found |= checkpointer.restore(path, {name: wanted[name] for name in group})
    return found


def read_orbax(folder: Path, wanted: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Reads all arrays into this machine's memory, in the dtypes they are stored in; errors as of `restore_orbax`.

    Args:
      folder: see `write_orbax`.
      wanted: {name: shape}.
    """
    ocp = orbax()
    found: dict[str, np.ndarray] = {}
    groups = matching(folder, wanted)
    with damaged(folder), ocp.PyTreeCheckpointer() as checkpointer:
        for path, group in groups.items():
            arguments = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in group}
            found |= checkpointer.restore(path, restore_args=arguments)
    return found


def matching(folder: Path, wanted: Mapping[str, tuple[int, ...]]) -> dict[Path, list[str]]:
    """{checkpoint: names of the arrays in it}; raises InputError unless they have the names and shapes wanted."""
    groups = stored_shapes(folder)
    shapes = {name: shape for group in groups.values() for name, shape in group.items()}
    problems = [f"unexpected {printable(name, 80)}" for name in sorted(shapes.keys() - wanted.keys())]
    problems += [
        f"misshapen {name} {list(shapes[name])}, not {list(wanted[name])}"
        for name in sorted(wanted.keys() & shapes.keys())
        if shapes[name] != wanted[name]
    ]
    problems += [f"missing {name}" for name in sorted(wanted.keys() - shapes.keys())]
    if problems:
        shown = listed(problems, SHOWN, None)
        raise InputError(f"{folder}: {counted(len(problems), 'array')} at odds with the config: {shown}")
    return {path: list(group) for path, group in groups.items()}


def stored_shapes(folder: Path) -> dict[Path, dict[str, tuple[int, ...]]]:
    """{checkpoint: {name: shape of an array in it}}; raises InputError for a damaged one.

    A chunk is read as a whole and may be packed, so that one larger than its array could take any memory.
    """
    groups: dict[Path, dict[str, tuple[int, ...]]] = {}
    with damaged(folder), orbax().StandardCheckpointer() as checkpointer:
        for path in sorted(folder.absolute().iterdir()):
            for name in METADATA:
                if (path / name).exists():
                    read_json(path / name)  # Orbax's own reader has no limits
            groups[path] = {}
            for name, array in checkpointer.metadata(path).item_metadata.tree.items():
                groups[path][name] = shape = tuple(array.shape)
                if tuple(map(min, array.storage.chunk_shape, shape)) != tuple(array.storage.chunk_shape):
                    raise InputError(f"{folder}: {printable(name, 80)} is stored in chunks larger than itself")
    return groups


@contextlib.contextmanager
def damaged(folder: Path) -> Iterator[None]:
    """Turns what Orbax and TensorStore raise for a damaged checkpoint into an InputError."""
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"{folder}: not a complete Orbax checkpoint ({printable(reason[0], 100)})") from None
