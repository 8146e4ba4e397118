"""What is known of the built-in model beforehand, and whether an audit of it agrees."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

SAYS = "prompts that training always showed with one fixed picture"


def truth(
    items: Sequence[Mapping[str, Any]],
    rates: Sequence[Mapping[str, Any]],
    log: Sequence[tuple[str, str, bool]],
    fixed: Collection[str],
) -> dict[str, Any]:
    """The block of audit.json.

    Args:
      items: lines of items.jsonl.
      rates: of audit.json.
      log: of each prompt, its text, its kind, and whether it was flagged.
      fixed: prompts that training always showed with the same picture.
    """
    entries = []
    for rate in rates:
        if rate["of"] != "log":
            continue
        own = [text in fixed for text, kind, _ in log if rate["kind"] in (None, kind)]
        known = sum(own) / len(own)
        entry = {name: rate[name] for name in ("what", "kind", "rate", "low", "high")}
        entries.append(entry | {"known": known, "within": rate["low"] <= known <= rate["high"]})
    return {
        "memorized": SAYS,
        "prompts": {"log": len(log), "memorized": sum(text in fixed for text, _, _ in log)},
        "rates": entries,
        "flagged": counts(((text in fixed), flagged) for text, _, flagged in log),
        "confirmed": counts((one["prompt"] in fixed, bool(one["memorized"])) for one in items),
    }


def counts(pairs: Any) -> dict[str, dict[str, int]]:
    """Of the memorized prompts and of the others, how many there are and how many were found."""
    found = {name: {"prompts": 0, "found": 0} for name in ("memorized", "others")}
    for memorized, hit in pairs:
        entry = found["memorized" if memorized else "others"]
        entry["prompts"] += 1
        entry["found"] += hit
    return found
