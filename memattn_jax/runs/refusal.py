"""The errors for an output folder with other results: what it holds and what to do, in one line."""

import json
from collections.abc import Mapping
from itertools import chain
from typing import Any

from memattn_jax.errors import LIMIT, InputError
from memattn_jax.text import printable

FOLDER = 60  # characters of its path, the last ones
VALUE = 24  # characters of a setting
NAMED, QUOTED = 20, 40  # and of a column's name, and of what it holds
REMEDY = "choose another --out or add --overwrite"


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """Differences between two JSON values, each as `name old is now new`."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = list(dict.fromkeys([*old, *new]))
        parts = [differences(old.get(key), new.get(key), f"{name}.{key}".lstrip(".")) for key in names]
        return list(chain.from_iterable(parts))
    values = (printable(json.dumps(value, ensure_ascii=False), VALUE) for value in (old, new))
    return [] if old == new else [f"{printable(name, 2 * VALUE)} {' is now '.join(values)}"]


def refusal(folder: str, old: dict[str, Any], new: dict[str, Any]) -> str:
    """The error for a folder with results of another command, model or settings, in at most `LIMIT` characters.

    Args:
      folder: the output folder.
      old: identity of what it holds, for JSON; `command` and `model`, a fingerprint, are described in words.
      new: identity of the results to write.
    """
    where = printable(folder if len(folder) <= FOLDER else f"…{folder[1 - FOLDER :]}")
    if old.get("command") != new.get("command"):
        return f"{where}: holds results of `{printable(str(old.get('command')), VALUE)}`; {REMEDY}"
    found = ["another model"] if old.get("model") != new.get("model") else []
    found += differences(old | {"model": None}, new | {"model": None})
    for shown in (2, 1, 0):
        parts = found[:shown] + [f"{len(found) - shown} more"] * (len(found) > shown)
        text = f"{where}: holds a run with other settings: {'; '.join(parts)}; {REMEDY}"
        if len(text) <= LIMIT:
            break
    return text


def check_early(folder: str, manifest: bytes | None, known: dict[str, Any]) -> None:
    """Refuses a folder by what is known of the results before anything is computed.

    Args:
      folder: the output folder.
      manifest: what it holds; None, or no manifest of this package, is left to `ShardedTable.claim`.
      known: entries of the identity of the results to write.

    Raises:
      InputError: see `refusal`.
    """
    try:
        old = json.loads(manifest or b"")["identity"]
        new = old | known
    except (ValueError, KeyError, TypeError):
        return
    if new != old:
        raise InputError(refusal(folder, old, new))


def require_same(folder: str, row: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Refuses to go on with a row that was made from something else.

    Args:
      folder: of the table.
      row: that exists.
      values: what its job gives for some of its columns.

    Raises:
      InputError: the row holds another value.
    """
    for column, value in values.items():
        if row[column] != value:
            old, new = (printable(str(text), QUOTED) for text in (row[column], value))
            raise InputError(
                f"{folder}: row {row['row']} was made from {printable(column, NAMED)} '{old}', which is now "
                f"'{new}'; {REMEDY}"
            )
