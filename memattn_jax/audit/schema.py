"""The JSON Schema of audit.json and of the lines of items.jsonl, which is shipped beside this file."""

import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from memattn_jax.errors import InputError
from memattn_jax.text import printable

FILE = Path(__file__).with_name("audit.schema.json")
VERSION = "memattn-audit/1"
PLACE, WRONG = 60, 80  # characters of a message


@cache
def validator(part: str = "") -> Any:
    """Checks a whole audit.json, or one definition of the schema, such as "item"."""
    from jsonschema import Draft202012Validator

    schema = json.loads(FILE.read_text(encoding="utf-8"))
    return Draft202012Validator({"$ref": f"#/$defs/{part}", "$defs": schema["$defs"]} if part else schema)


def check(value: Mapping[str, Any], where: str, part: str = "") -> None:
    """Raises InputError unless a value fits the schema, or its definition `part`; names the first place that does not.

    Args:
      value: parsed JSON.
      where: names it in the message, such as "audit.json" or "items.jsonl line 3".
      part: a definition of the schema; the whole schema by default.
    """
    errors: Iterable[Any] = validator(part).iter_errors(value)
    for error in errors:
        place = printable(".".join(map(str, error.absolute_path)), PLACE) or "the whole"
        raise InputError(f"{where}: {place} does not fit {VERSION}: {printable(error.message, WRONG)}")
