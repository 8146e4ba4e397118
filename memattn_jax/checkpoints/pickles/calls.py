"""Which names a checkpoint may mention, and what a call of one gives.

A name that is not known here is refused when the pickle mentions it, called or not. Stable Diffusion's files mention
classes of PyTorch Lightning (1.4 and 1.5: `ModelCheckpoint`, as a key of "callbacks") and of omegaconf (the settings of
their training); programs of TorchScript mention the classes that they define (`__torch__`). These are inert: the class
stays a name, and an instance is a dict of what the pickle gives it. Nothing is imported, so that it does not matter
what the class would have done.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from memattn_jax.checkpoints.pickles.arrays import make_array, make_dtype, make_scalar, set_array
from memattn_jax.checkpoints.pickles.names import Global, Instance, RefusedError, parse
from memattn_jax.checkpoints.pickles.tensors import DTYPES, is_storage, rebuild_any_dtype, rebuild_tensor

INERT_PACKAGES = ("__torch__", "lightning", "lightning_fabric", "omegaconf", "pytorch_lightning")
INERT_CLASSES = ("argparse.Namespace", "torch.nn.modules.container.ParameterDict")  # the latter holds embeddings
MENTIONED = {"numpy.ndarray", "torch.Tensor", "torch.nn.parameter.Parameter", "typing.Any", *INERT_CLASSES}
MENTIONED |= {f"builtins.{name}" for name in ("bool", "dict", "float", "int", "list", "str", "tuple")}
MENTIONED |= {f"torch.{name}" for name in DTYPES}


def find(module: Any, name: Any) -> Global:
    """The name of a class or function; raises RefusedError for one that no checkpoint needs."""
    found = parse(module, name)
    if not (str(found) in CALLS or str(found) in MENTIONED or is_storage(found) or inert(found)):
        raise RefusedError(str(found))
    return found


def inert(found: Global) -> bool:
    """Whether instances of a class are read as dicts."""
    return found.module.partition(".")[0] in INERT_PACKAGES or str(found) in INERT_CLASSES


def call(function: Global, arguments: tuple[Any, ...]) -> Any:
    """The value of a call, or the new instance of a class; raises RefusedError for one that no checkpoint needs."""
    if inert(function):
        return Instance()
    if str(function) not in CALLS:
        raise RefusedError(str(function))
    return CALLS[str(function)](*arguments)


def set_state(target: Any, state: Any) -> None:
    """What BUILD does to an object of the pickle; in Python it sets attributes.

    A dict's are left out: state dicts have `_metadata`, which says nothing of weights.
    """
    if type(target) is Instance and type(state) is dict:
        target.update(state.get("_parameters", state))
    elif type(target) is np.ndarray and target.size == 0:
        set_array(target, *state)
    elif isinstance(target, np.dtype):
        if state[1] == ">":
            raise ValueError("its numbers are big-endian")
    elif type(target) not in (dict, Instance):
        raise ValueError(f"its pickle sets attributes of a {type(target).__name__}")


def rebuild_parameter(tensor: Any, *_: Any) -> Any:
    """A parameter is its tensor."""
    return tensor


def rebuild_subclass(function: Any, kind: Any, arguments: Any, state: Any) -> Any:
    """A tensor with attributes or of a subclass, without them."""
    if type(function) is not Global or function.module != "torch._utils" or type(arguments) is not tuple:
        raise ValueError("a tensor's class is damaged")
    return call(function, arguments)


def encode(text: Any, encoding: Any) -> bytes:
    """Protocol 2 stores bytes as text in Latin-1."""
    if type(text) is not str or encoding != "latin1":
        raise ValueError("its pickle encodes what is no text")
    return text.encode("latin1")


def make_dict(first: Any = None) -> dict[Any, Any]:
    """An OrderedDict or defaultdict, whose items follow, or a Counter, which has them."""
    if type(first) is dict:
        return first
    if first is not None and type(first) is not Global:
        raise ValueError(f"its pickle makes a dict of a {type(first).__name__}")
    return {}


def make_tuple(items: Any = ()) -> tuple[Any, ...]:
    """A `torch.Size`, or a set, whose members would have to be hashed."""
    if type(items) not in (tuple, list):
        raise ValueError(f"its pickle makes a tuple of a {type(items).__name__}")
    return tuple(items)


def make_text(*words: Any) -> str:
    """A `torch.device` or a layout: "cuda:0"."""
    if any(type(word) not in (str, int) for word in words):
        raise ValueError("a torch.device is damaged")
    return ":".join(map(str, words))


def tagged(value: Any, *_: Any) -> Any:
    """A value to which TorchScript adds its type."""
    return value


def make_complex(real: Any, imaginary: Any) -> complex:
    """A complex number."""
    if type(real) is not float or type(imaginary) is not float:
        raise ValueError("a complex number is damaged")
    return complex(real, imaginary)


def make_bytes() -> bytes:
    """No bytes at all, which protocol 2 does not store as text."""
    return b""


CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": rebuild_tensor,
    "torch._utils._rebuild_tensor_v3": rebuild_any_dtype,
    "torch._utils._rebuild_parameter": rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": rebuild_parameter,
    "torch._tensor._rebuild_from_type_v2": rebuild_subclass,
    "torch.Size": make_tuple,
    "torch.jit._pickle.build_boollist": make_tuple,
    "torch.jit._pickle.build_doublelist": make_tuple,
    "torch.jit._pickle.build_intlist": make_tuple,
    "torch.jit._pickle.build_tensorlist": make_tuple,
    "torch.jit._pickle.restore_type_tag": tagged,
    "torch.device": make_text,
    "torch.serialization._get_layout": make_text,
    "collections.Counter": make_dict,
    "collections.OrderedDict": make_dict,
    "collections.defaultdict": make_dict,
    "builtins.bytes": make_bytes,
    "builtins.complex": make_complex,
    "builtins.frozenset": make_tuple,
    "builtins.set": make_tuple,
    "_codecs.encode": encode,
    "numpy.dtype": make_dtype,
    "numpy.core.multiarray.scalar": make_scalar,
    "numpy.core.multiarray._reconstruct": make_array,
    "numpy._core.multiarray.scalar": make_scalar,
    "numpy._core.multiarray._reconstruct": make_array,
}
