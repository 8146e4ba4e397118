"""Mitigations on the command line: a name, and the fields of its class as KEY=VALUE."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from memattn_jax.errors import InputError, check_name
from memattn_jax.registries import MITIGATIONS, load
from memattn_jax.text import printable

if TYPE_CHECKING:
    from memattn_jax.mitigations import Mitigation

OPTION = "--mitigation-options"
WORDS = {"none": None, "true": True, "false": False}


def parse_options(texts: tuple[str, ...]) -> dict[str, Any]:
    """Texts such as "begin_scale=1.5" and "mask=none" to values: numbers, true, false, none or text.

    Raises:
      InputError: a text of another form, or a key that is given twice.
    """
    values: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise InputError(f"{OPTION} {printable(text, 40)}: expected KEY=VALUE, such as begin_scale=1.5")
        if key in values:
            raise InputError(f"{OPTION}: {key} is given twice")
        values[key] = parse_value(value)
    return values


def parse_value(text: str) -> Any:
    """The number, boolean, None or string that a text stands for."""
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    if re.fullmatch(r"[+-]?\d+", text):
        return int(text)
    try:
        return float(text)
    except ValueError:
        return text


def make_mitigation(name: str, texts: tuple[str, ...], defaults: Mapping[str, Any] | None = None) -> "Mitigation":
    """Builds a mitigation by name with these options, and with fields for what they leave out.

    Raises:
      InputError: an unknown option, or an invalid value.
    """
    kind, values = load(MITIGATIONS[name]), parse_options(texts)
    known = {field.name: field for field in dataclasses.fields(kind)}
    for key, value in values.items():
        check_name(f"option of {name}", key, known, OPTION)
        default = known[key].default
        number = isinstance(default, int | float) and not isinstance(default, bool)
        if number and (isinstance(value, str | bool | None) or not abs(value) < float("inf")):
            raise InputError(f"{OPTION} {key}={printable(str(value), 40)}: must be a finite number")
    try:
        return kind(**{**(defaults or {}), **values})
    except InputError as error:
        raise InputError(f"{OPTION}: {error}") from None


def describe(mitigation: "Mitigation") -> dict[str, Any]:
    """The fields of a mitigation that is not fitted yet, for a table; what only the host reads as a hash."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(mitigation):
        value = getattr(mitigation, field.name)
        if field.metadata.get("host_only") and not isinstance(value, int | float):
            value = hashlib.sha256(json.dumps(value).encode()).hexdigest()
        values[field.name] = value
    return values
