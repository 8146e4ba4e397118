"""Checks values that come from a file against the annotations of a dataclass's fields."""

import math
from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from memattn_jax.text import printable

LARGEST = 2**31  # of whole numbers, so that none takes an array index out of its range
SHOWN = 40  # characters of a value that does not fit
NOUNS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", NoneType: "null"}


def misfit(cls: type, values: Mapping[str, Any]) -> str | None:
    """The first value that its field cannot have: "steps='10'; expected a whole number". None where all fit.

    Args:
      cls: a dataclass, whose annotations are made of `NOUNS`, unions, tuples and sequences.
      values: parsed JSON by field; lists may stand for tuples.
    """
    hints = get_type_hints(cls)
    for key, value in values.items():
        if not fits(value, hints[key]):
            return f"{key}={printable(repr(value), SHOWN)}; expected {noun(hints[key])}"
    return None


def fits(value: Any, annotation: Any) -> bool:
    """Whether a value is of a type; whole numbers are numbers, null is false, and no number is infinite."""
    origin, arguments = get_origin(annotation) or annotation, get_args(annotation)
    if origin is UnionType:
        return any(fits(value, alternative) for alternative in arguments)
    if origin in (tuple, Sequence):
        return isinstance(value, list | tuple) and all(fits(item, arguments[0]) for item in value)
    if origin is bool:
        return isinstance(value, bool | None)
    if origin is int:
        return type(value) is int and abs(value) < LARGEST
    if origin is float:
        return type(value) in (int, float) and math.isfinite(value)
    return isinstance(value, origin)


def noun(annotation: Any) -> str:
    """What an annotation admits, in words."""
    origin, arguments = get_origin(annotation) or annotation, get_args(annotation)
    if origin is UnionType:
        return " or ".join(map(noun, arguments))
    if origin in (tuple, Sequence):
        return f"a list, each item {noun(arguments[0])}"
    return NOUNS[origin]
