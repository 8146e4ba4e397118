"""Dataclasses that JAX can carry: their numbers are traced, what is `static` is part of the compiled program."""

from dataclasses import MISSING, dataclass, field, fields
from typing import Any, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import GetAttrKey

T = TypeVar("T")


def static(*, default: Any = MISSING) -> Any:
    """A field that is part of the compiled program, not of its data: another value compiles again."""
    return field(default=default, metadata={"static": True})


def host_only(*, default: Any = MISSING) -> Any:
    """A field that no compiled program reads, such as a table of texts: another value compiles nothing."""
    return field(default=default, metadata={"static": True, "host_only": True})


class Unread:
    """Carries a `host_only` field through JAX's trees: all of them are equal, whatever they hold."""

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Unread)

    def __hash__(self) -> int:
        return 0


class Itself:
    """Carries a static object that knows no comparison of its own through JAX's trees: it equals itself alone."""

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Itself) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


def inherits_comparison(value: Any) -> bool:
    """Whether an object's class, no `pytree` itself, compares by the fields of one that it is derived from."""
    kind: Any = type(value)
    of = getattr(kind, "is_pytree_of", kind)
    return of is not kind and kind.__eq__ is of.__eq__


@dataclass_transform(frozen_default=True, field_specifiers=(field, static, host_only))
def pytree(cls: type[T]) -> type[T]:
    """Makes a class a frozen dataclass that is a pytree; every field that is not `static` is traced.

    Unlike two classes of `jax.tree_util.register_dataclass` with the same fields, whose tree structures JAX (0.10 to
    0.12) holds to be equal, so that one may be run with the program compiled for the other, two of these differ.
    """
    kind: Any = dataclass(frozen=True)(cls)
    traced = tuple(each.name for each in fields(kind) if not each.metadata.get("static"))
    fixed = tuple(each.name for each in fields(kind) if each.metadata.get("static"))
    unread = {each.name for each in fields(kind) if each.metadata.get("host_only")}

    def flatten(value: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        kept: list[Any] = []
        for name in fixed:
            part = getattr(value, name)
            if isinstance(part, list) and name not in unread:
                part = tuple(part)  # JAX looks programs up by the hash of what is static
            kept.append(Unread(part) if name in unread else Itself(part) if inherits_comparison(part) else part)
        return tuple(getattr(value, name) for name in traced), tuple(kept)

    def flatten_with_keys(value: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        children, rest = flatten(value)
        return tuple(zip(map(GetAttrKey, traced), children, strict=True)), rest

    def unflatten(rest: tuple[Any, ...], children: Any) -> Any:
        value = object.__new__(kind)  # without __init__, as JAX also rebuilds trees of other things than numbers
        for name, part in zip((*traced, *fixed), (*children, *rest), strict=True):
            object.__setattr__(value, name, part.value if isinstance(part, Unread | Itself) else part)
        return value

    jax.tree_util.register_pytree_with_keys(kind, flatten_with_keys, unflatten, flatten)
    kind.is_pytree_of = kind
    return kind


class Wrapped:
    """Stands for an object of a class that is not a `pytree`, and acts as it does."""

    value: Any

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "value":  # what Python asks a half-made object for, as when it is copied
            raise AttributeError(name)
        return getattr(self.value, name)

    def __call__(self, *arguments: Any) -> Any:
        """The object, called."""
        return self.value(*arguments)


@pytree
class Static(Wrapped):
    """An object that JAX takes for a leaf, such as a function: all of it is part of the compiled program."""

    value: Any = static()


@pytree
class Foreign(Wrapped):
    """A pytree that was registered elsewhere; its class is part of the compiled program, see `pytree`."""

    value: Any
    kind: type = static()


def as_pytree(value: Any) -> Any:
    """The value, or a pytree that acts as it does where it is not an instance of a `pytree`.

    So functions, objects of unregistered classes, and pytrees of other libraries can go where `pytree`s go. All of an
    object that JAX does not know is static: each new one compiles again.
    """
    if getattr(type(value), "is_pytree_of", None) is type(value):
        return value
    return Static(value) if jax.tree_util.all_leaves([value]) else Foreign(value, type(value))


def as_arrays(tree: Any) -> Any:
    """A pytree whose numbers are float32, int32 or bool arrays, so that a number's Python type compiles nothing.

    JAX's arrays stay as they are.
    """

    def convert(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array):
            return leaf
        array = np.asarray(leaf)
        dtype = {"f": np.float32, "i": np.int32}.get(array.dtype.kind, array.dtype)
        return jnp.asarray(array.astype(dtype))

    return jax.tree.map(convert, tree)
