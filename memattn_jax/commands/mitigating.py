"""Mitigations on the command line: a name, and the fields of its class as KEY=VALUE."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from math import isfinite
from typing import TYPE_CHECKING, Any, get_args

from memattn_jax.errors import InputError, check_name
from memattn_jax.registries import MITIGATIONS, load
from memattn_jax.text import printable
from memattn_jax.typed import LARGEST

if TYPE_CHECKING:
    from memattn_jax.mitigations import Mitigation

OPTION = "--mitigation-options"
WANTED = {bool: "true or false", int: f"a whole number in [0, {LARGEST})", float: "a finite number"}


def parse_options(texts: tuple[str, ...]) -> dict[str, str]:
    """Texts such as "begin_scale=1.5" and "mask=none" to the text of each field.

    Raises:
      InputError: a text of another form, or a key that is given twice.
    """
    values: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise InputError(f"{OPTION} {printable(text, 40)}: expected KEY=VALUE, such as begin_scale=1.5")
        if key in values:
            raise InputError(f"{OPTION}: {key} is given twice")
        values[key] = value
    return values


def parse_value(text: str, field: dataclasses.Field[Any]) -> Any:
    """What a text stands for in a field: a value of the kind of its default, or None where that is one of its types.

    Raises:
      InputError: it is of another kind.
    """
    if text.lower() == "none" and type(None) in get_args(field.type):
        return None
    if field.default is None:
        return tuple(text.split("+"))  # names of layers
    kind = type(field.default)
    if kind not in PARSERS:
        return text
    value = PARSERS[kind](text)
    if value is None:
        raise InputError(f"{OPTION} {field.name}={printable(text, 40)}: must be {WANTED[kind]}")
    return value


def true_or_false(text: str) -> bool | None:
    """The boolean that a text stands for; None for another text."""
    return {"true": True, "false": False}.get(text.lower())


def whole_number(text: str) -> int | None:
    """The whole number that a text stands for; None for another text, and for one out of range."""
    return int(text) if re.fullmatch(r"\+?\d{1,10}", text) and int(text) < LARGEST else None


def finite_number(text: str) -> float | None:
    """The number that a text stands for; None for another text, infinity and NaN."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if isfinite(value) else None


PARSERS: dict[type, Callable[[str], Any]] = {bool: true_or_false, int: whole_number, float: finite_number}


def make_mitigation(name: str, texts: tuple[str, ...], defaults: Mapping[str, Any] | None = None) -> "Mitigation":
    """Builds a mitigation by name with these options, and with fields for what they leave out.

    Raises:
      InputError: an unknown option, or an invalid value.
    """
    kind, values = load(MITIGATIONS[name]), parse_options(texts)
    known = {field.name: field for field in dataclasses.fields(kind) if not learned(field)}
    for key in values:
        check_name(f"option of {name}", key, known, OPTION)
    given = {key: parse_value(text, known[key]) for key, text in values.items()}
    try:
        return kind(**{**(defaults or {}), **given})
    except InputError as error:
        raise InputError(f"{OPTION}: {error}") from None


def learned(field: dataclasses.Field[Any]) -> bool:
    """Whether a field holds what `fit` has learned: arrays, of which there are none by default."""
    return field.default is None and not field.metadata.get("static")


def describe(mitigation: "Mitigation") -> dict[str, Any]:
    """The fields of a mitigation that is not fitted yet, for a table; what only the host reads as a hash."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(mitigation):
        value = getattr(mitigation, field.name)
        if field.metadata.get("host_only") and not isinstance(value, int | float):
            value = hashlib.sha256(json.dumps(value).encode()).hexdigest()
        values[field.name] = value
    return values
