"""Files of `torch.save` (.bin, .ckpt, .pt, .pth), read without PyTorch and without running anything in them.

Since PyTorch 1.6 such a file is a zip container: data.pkl is a pickle, data/0, data/1 … are the storages that it
mentions. Before, it was five pickles one after the other (a magic number, a version, the machine's byte order, the
object, the keys of its storages), and then the storages, each behind its number of elements. Of either, a tensor is a
view of the mapped file.
"""

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from memattn_jax.checkpoints.mapped import TensorFile, map_file
from memattn_jax.checkpoints.pickles.machine import run
from memattn_jax.checkpoints.pickles.names import Global, RefusedError
from memattn_jax.checkpoints.pickles.tensors import DTYPES, STORAGES, Storage, is_size, is_storage
from memattn_jax.checkpoints.pickles.zip_members import zip_members
from memattn_jax.errors import InputError
from memattn_jax.text import printable

T = TypeVar("T")
ZIP = b"PK\x03\x04"
PICKLE = (b"\x80", b"c", b"(")  # the first byte of pickles; the last two are of protocol 0
MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001  # of files before PyTorch 1.6
PICKLE_LIMIT = 2**24  # bytes; that of a model has a few hundred thousand
STATE_DICTS = ("state_dict", "model")  # where training programs put it
DAMAGE = (ValueError, TypeError, IndexError, KeyError, OverflowError, AttributeError)


def is_pickle(start: bytes) -> bool:
    """Whether a file with these first 16 bytes is one of `torch.save`, or a pickle.

    A safetensors file may begin with the same byte, but after the four high bytes of its length comes a brace.
    """
    return start.startswith(ZIP) or (start.startswith(PICKLE) and start[4:9] != b"\0\0\0\0{")


def load_pickle(path: Path) -> Any:
    """The object in a file of `torch.save`.

    Args:
      path: the file; its first bytes say of which kind it is, not its name.

    Returns:
      Nested dicts, lists and tuples of numbers, strings and arrays, which are read-only views of the mapped file in the
      dtype and shape they are stored in. Classes of Lightning and others are inert, see `pickles.calls`. A stranger's
      lists may contain themselves: ask for what is known, and do not walk through all of it.

    Raises:
      FileNotFoundError: no such file.
      InputError: damaged, no such file format, or a pickle that asks for anything but tensors, numbers, strings, lists
        and dicts, which is named.
    """
    return load_mapped(path, map_file(path))


def load_mapped(path: Path, data: np.ndarray) -> Any:
    """See `load_pickle`, which maps the file's bytes, uint8 [size], first."""
    return guarded(path, data, from_zip if data[:4].tobytes() == ZIP else from_stream)


def guarded(path: Path, data: np.ndarray, reading: Callable[[np.ndarray], T]) -> T:
    """What `reading` finds in a file's bytes, uint8 [size]; raises InputError for what it refuses or is damaged."""
    try:
        return reading(data)
    except RefusedError as error:
        raise InputError(
            f"{path}: asks for {printable(str(error), 60)}; a checkpoint holds tensors, numbers, strings, lists and "
            "dicts, and nothing else in it is run"
        ) from None
    except DAMAGE as error:
        reason = printable(str(error), 120) if type(error) is ValueError else "its pickle is damaged"
        raise InputError(f"{path}: not a complete file of torch.save ({reason})") from None


def read_pickle(path: Path, data: np.ndarray) -> TensorFile:
    """The state dict in a file of `torch.save`: the whole object, or its entry "state_dict" or "model".

    Args:
      path: names the file in errors.
      data: its bytes, uint8 [size].

    Returns:
      The state dict's tensors, and everything beside them.

    Raises:
      InputError: see `load_pickle`; or the object is no dict.
    """
    content = load_mapped(path, data)
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, not a dict of tensors; save the state_dict()")
    state = next((content[key] for key in STATE_DICTS if isinstance(content.get(key), dict)), content)
    tensors = {str(name): value for name, value in state.items() if type(value) is np.ndarray}
    beside = {str(name): value for name, value in content.items() if value is not state and str(name) not in tensors}
    return TensorFile(tensors, beside)


def stream_of(data: np.ndarray, start: int = 0) -> io.BytesIO:
    """The bytes that a pickle may take."""
    return io.BytesIO(data[start : start + PICKLE_LIMIT].tobytes())


def storage_id(persistent_id: Any) -> tuple[np.dtype, str, int]:
    """Dtype, key and elements of the storage that a pickle mentions."""
    kind, storage_class, key, _, elements, *view = persistent_id
    if kind != "storage" or not is_storage(storage_class) or type(key) is not str or not is_size(elements):
        raise ValueError("a tensor's storage is damaged")
    if any(view):  # of files before PyTorch 0.4
        raise ValueError("a storage is a view of another")
    return DTYPES[STORAGES[storage_class.name]], key, elements


def from_zip(data: np.ndarray) -> Any:
    """The object in a zip container; its bytes, uint8 [size]."""
    members = zip_members(data)
    root = root_of(members)
    if f"{root}constants.pkl" in members:
        raise ValueError("a program of TorchScript; save its state_dict() with torch.save")
    return from_members(members, f"{root}data")


def root_of(members: Mapping[str, np.ndarray]) -> str:
    """The folder that everything in a zip container is in, with its slash."""
    roots = [name.removesuffix("data.pkl") for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(roots) != 1:
        raise ValueError("a zip file without data.pkl")
    return roots[0]


def from_members(members: Mapping[str, np.ndarray], archive: str) -> Any:
    """The object in `archive`.pkl, whose storages are in the folder `archive`."""
    order = members.get(f"{archive.partition('/')[0]}/byteorder")
    if order is not None and order[:8].tobytes() != b"little":
        raise ValueError("not of little-endian byte order")

    def storage(persistent_id: Any) -> Storage:
        dtype, key, elements = storage_id(persistent_id)
        content = members.get(f"{archive}/{key}")
        if content is None or content.size != elements * dtype.itemsize:
            raise ValueError(f"storage {key[:20]!r} of {elements:,} elements is missing or of another size")
        return Storage(dtype, content)

    pickled = members[f"{archive}.pkl"]
    if pickled.size > PICKLE_LIMIT:
        raise ValueError(f"its pickle has over {PICKLE_LIMIT:,} bytes; a model's has a few hundred thousand")
    return run(stream_of(pickled), storage)


def from_stream(data: np.ndarray) -> Any:
    """The object of a file from before PyTorch 1.6, or of a plain pickle; its bytes, uint8 [size]."""
    stream = stream_of(data)
    first = run(stream, refuse)
    if type(first) is not int or first != MAGIC:
        return first
    version, machine = run(stream, refuse), run(stream, refuse)
    if version != VERSION or machine["little_endian"] is not True:
        raise ValueError("of another version, or not of little-endian byte order")
    start = stream.tell()
    dtypes: dict[str, np.dtype] = {}

    def without_data(persistent_id: Any) -> Storage | Global:
        if persistent_id[0] == "module":  # a class, with its source code
            return persistent_id[1]
        dtype, key, _ = storage_id(persistent_id)
        return Storage(dtypes.setdefault(key, dtype), None)

    run(stream, without_data)
    keys = run(stream, refuse)
    storages = find_storages(data, stream.tell(), {key: dtypes[key] for key in keys})

    def storage(persistent_id: Any) -> Storage | Global:
        if persistent_id[0] == "module":
            return persistent_id[1]
        dtype, key, elements = storage_id(persistent_id)
        if storages[key].size != elements * dtype.itemsize:
            raise ValueError(f"storage {key[:20]!r} of {elements:,} elements is of another size")
        return Storage(dtype, storages[key])

    stream.seek(start)
    return run(stream, storage)


def find_storages(data: np.ndarray, position: int, dtypes: dict[str, np.dtype]) -> dict[str, np.ndarray]:
    """The storages that follow the pickles of a file from before PyTorch 1.6 at `position`, {key: uint8 [bytes]}."""
    storages = {}
    for key, dtype in dtypes.items():
        elements = int.from_bytes(data[position : position + 8].tobytes(), "little")
        end = position + 8 + elements * dtype.itemsize
        if end > data.size:
            raise ValueError(f"storage {key[:20]!r} ends at byte {end:,} of {data.size:,}")
        storages[key] = data[position + 8 : end]
        position = end
    return storages


def refuse(persistent_id: Any) -> Any:
    """Raises ValueError: this pickle must not mention storages."""
    raise ValueError("its pickle mentions storages, but the file has none")
