"""Whether a finished audit still holds: digests, schema, and counts, rates and a verdict that follow from its lines."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from memattn_jax import __version__
from memattn_jax.audit import schema
from memattn_jax.audit.document import mitigated_rates
from memattn_jax.audit.folder import AUDIT, ITEMS, MADE, SEARCHED, SIDE, digests
from memattn_jax.audit.rates import FLAGGED, NOT_FLAGGED, UNKNOWN, WHATS, rates_of, without_headlines
from memattn_jax.audit.wording import verdict, yield_of_search
from memattn_jax.errors import InputError
from memattn_jax.text import printable

NAMED = 80  # characters of a file's name in a message


def side_digests(folder: Path) -> dict[str, str]:
    """{file: SHA-256} of audit.json and what is made of it, as its side file has them.

    Raises:
      InputError: no side file, or one that names other files.
    """
    path = folder / SIDE
    if not path.is_file():
        raise InputError(f"{path}: missing, so that {AUDIT} cannot be checked")
    found = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        value, _, name = line.partition("  ")
        if name not in (AUDIT, *MADE):
            raise InputError(f"{path}: '{printable(name, NAMED)}' is not a file that it should name")
        found[name] = value
    if AUDIT not in found:
        raise InputError(f"{path}: says nothing of {AUDIT}")
    return found


def check_files(folder: Path, expected: Mapping[str, str]) -> None:
    """Raises InputError that names the first file that is missing or has other bytes."""
    names = sorted(expected)
    for name in names:
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
            raise InputError(f"{folder}: {printable(name, NAMED)} is missing")
    for name, found in zip(names, digests(folder / name for name in names), strict=True):
        if found != expected[name]:
            where = f"{name} {changed_line(folder)}" if name == ITEMS else name
            raise InputError(f"{folder}: {printable(where, NAMED)} has changed: its SHA-256 is not the one recorded")


def changed_line(folder: Path) -> str:
    """The first line of items.jsonl that is damaged or has other scores than the table of detection; "" if none is."""
    tables = sorted((folder / "detection").glob("[0-9]*.parquet"))
    rows = {row["row"]: row for path in tables for row in read_rows(path)}
    with (folder / ITEMS).open(encoding="utf-8", errors="replace", newline="\n") as file:
        for number, line in enumerate(file, 1):
            try:
                item = json.loads(line)
                schema.check(item, ITEMS, "item")
                row = rows.get(item["row"], {})
                values = item["scores"] | {name: item[name] for name in ("prompt", "p", "tokens", "blamed")}
            except ValueError:
                return f"line {number}"
            if any(row.get(name) != value for name, value in values.items()):
                return f"line {number} (row {item['row']})"
    return ""


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a Parquet file; none of a damaged one."""
    try:
        return pq.read_table(path, partitioning=None).to_pylist()
    except (pa.ArrowException, OSError):
        return []


def lines_of(folder: Path) -> Iterator[dict[str, Any]]:
    """The lines of items.jsonl, each checked against the schema."""
    with (folder / ITEMS).open(encoding="utf-8", newline="\n") as file:
        for number, line in enumerate(file, 1):
            item = parsed(line, f"{ITEMS} line {number}")
            schema.check(item, f"{ITEMS} line {number}", "item")
            yield item


def parsed(text: str, where: str) -> Any:
    """The value that a text in JSON stands for; raises InputError where it is none."""
    try:
        return json.loads(text)
    except ValueError:
        raise InputError(f"{where}: not JSON") from None


def sizes_of(audit: Mapping[str, Any]) -> dict[tuple[str, str | None], int]:
    """Number of the log's prompts by stratum and kind, as `rates_of` takes them.

    Prompts without a kind are what the kinds leave of the whole stratum.
    """
    strata: Sequence[Mapping[str, Any]] = audit["confirmation"]["strata"]
    sizes = {(one["stratum"], one["kind"]): one["prompts"] for one in strata}
    for name in {name for name, _ in sizes}:
        sizes[name, None] -= sum(count for (own, kind), count in sizes.items() if own == name and kind is not None)
    return sizes


def check_rates(audit: Mapping[str, Any], items: Sequence[Mapping[str, Any]]) -> int:
    """The number of rates that follow from the lines; raises InputError that names one that does not."""
    again = rates_of(items, sizes_of(audit), audit["training_pictures"] is not None)
    if SEARCHED in audit["files"]:
        again = without_headlines(again)
    known = {(one["what"], one["of"], one["kind"]): one for one in again}
    for entry in audit["rates"]:
        name = entry["what"], entry["of"], entry["kind"]
        other = known.pop(name, None)
        if other is None or any(not alike(entry[key], other[key]) for key in entry):
            shown = ", ".join(printable(str(part), NAMED // 3) for part in name if part is not None)
            raise InputError(f"{AUDIT}: the rate of {shown} does not follow from {ITEMS}")
    if known:
        raise InputError(f"{AUDIT}: {len(known)} rates that follow from {ITEMS} are missing")
    return len(again)


def check_counts(audit: Mapping[str, Any], items: Sequence[Mapping[str, Any]]) -> None:
    """Raises InputError that names a number of prompts that the strata do not give, or the lines not the strata."""
    detection, strata = audit["detection"], audit["confirmation"]["strata"]
    whole = {one["stratum"]: one["prompts"] for one in strata if one["kind"] is None}
    scored = sum(whole.values())
    pairs = [("scored", detection["scored"], scored), ("in prompts.log", audit["prompts"]["log"]["prompts"], scored)]
    pairs += [(name, detection[name.replace(" ", "_")], whole.get(name, 0)) for name in (FLAGGED, NOT_FLAGGED, UNKNOWN)]
    pairs += [("unscored", detection["unscored"], audit["prompts"]["log"]["unreadable"])]
    for name, stratum in (("flagged", FLAGGED), ("unflagged", NOT_FLAGGED), ("unknown", UNKNOWN)):
        own = sum(item["stratum"] == stratum for item in items)
        pairs.append((f"of {name}_sampled", audit["confirmation"][f"{name}_sampled"], own))
    for one in strata:
        own = [item for item in items if item["stratum"] == one["stratum"] and one["kind"] in (None, item["kind"])]
        pairs.append((f"sampled of {one['stratum']}", one["sampled"], len(own)))
    for name, stated, counted in pairs:
        if stated != counted:
            raise InputError(f"{AUDIT}: {stated} prompts {name}, where {counted} follow from the strata and {ITEMS}")


def check_words(audit: Mapping[str, Any], items: Sequence[Mapping[str, Any]]) -> None:
    """Raises InputError where the rates with the mitigation or the verdict do not follow from the lines."""
    pictures, mitigation = audit["training_pictures"] is not None, audit["mitigation"]
    if mitigation is not None:
        again = mitigated_rates(items, WHATS if pictures else WHATS[:1])
        pairs = zip(mitigation["rates"], again, strict=False)
        if len(again) != len(mitigation["rates"]) or any(not alike(a[key], b[key]) for a, b in pairs for key in b):
            raise InputError(f"{AUDIT}: the rates with the mitigation do not follow from {ITEMS}")
    searched = SEARCHED in audit["files"]
    words = yield_of_search(items, pictures) if searched else verdict(audit["rates"], audit["confirmation"]["seeds"])
    stated = audit["verdict"]
    another = audit["versions"]["memattn_jax"] != __version__  # which may say it in other words
    if (words["refused"] is None) != (stated["refused"] is None) or (words != stated and not another):
        raise InputError(f"{AUDIT}: the verdict does not follow from the rates")


def alike(one: Any, other: Any) -> bool:
    """Whether two values are equal, numbers up to rounding: another version of scipy may differ in the last digits."""
    if isinstance(one, float | int) and isinstance(other, float | int):
        return abs(one - other) <= 1e-9
    return one == other


def check_folder(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """audit.json and the lines of items.jsonl of an audit all of whose files are as they were written.

    Raises:
      InputError: names the first file or place that is not.
    """
    check_files(folder, side_digests(folder))
    audit = parsed((folder / AUDIT).read_text(encoding="utf-8", errors="replace"), AUDIT)
    schema.check(audit, AUDIT)
    check_files(folder, audit["files"])
    items = list(lines_of(folder))
    check_counts(audit, items)
    check_rates(audit, items)
    check_words(audit, items)
    return audit, items
