"""What is known of the built-in model beforehand, and whether an audit of it agrees."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

SAYS = "prompts that training always showed with one fixed picture, which is among the training pictures"


def truth(
    items: Sequence[Mapping[str, Any]],
    rates: Sequence[Mapping[str, Any]],
    log: Sequence[tuple[str, str, bool]],
    fixed: Collection[str],
) -> dict[str, Any]:
    """The block of audit.json.

    Known is which prompts should return their picture. Others may be memorized without it: the model mixes the picture
    of a memorized prompt into a decoy that shares its distinctive words, the same for every seed.

    Args:
      items: lines of items.jsonl.
      rates: of audit.json.
      log: of each prompt, its text, its kind, and whether it was flagged.
      fixed: prompts that training always showed with the same picture.
    """
    known = sum(text in fixed for text, _, _ in log)
    entry = next(rate for rate in rates if (rate["what"], rate["of"], rate["kind"]) == ("extracted", "log", None))
    share = known / len(log)
    compared = {name: entry[name] for name in ("what", "kind", "rate", "low", "high")}
    kinds = sorted({kind for _, kind, _ in log})
    return {
        "memorized": SAYS,
        "prompts": {"log": len(log), "memorized": known},
        "rates": [{**compared, "known": share, "within": entry["low"] <= share <= entry["high"]}],
        "flagged": counts(((text in fixed), flagged) for text, _, flagged in log),
        "confirmed": counts((item["prompt"] in fixed, item["memorized"]) for item in items),
        "extracted": counts((item["prompt"] in fixed, item["extracted"]) for item in items),
        "memorized_by_kind": {
            kind: share_found(item["memorized"] for item in items if item["kind"] == kind) for kind in kinds
        },
    }


def counts(pairs: Iterable[tuple[bool, bool | None]]) -> dict[str, dict[str, int]]:
    """Of the prompts that are known to be memorized and of the others, how many there are and were found."""
    rows = list(pairs)
    return {
        name: share_found(hit for memorized, hit in rows if memorized is known)
        for name, known in (("memorized", True), ("others", False))
    }


def share_found(hits: Iterable[bool | None]) -> dict[str, int]:
    """How many prompts there are and were found, without those that could not be judged."""
    judged = [hit for hit in hits if hit is not None]
    return {"prompts": len(judged), "found": sum(judged)}
