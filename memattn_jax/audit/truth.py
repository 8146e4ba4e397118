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
    return {
        "extracted": {
            "known": share,
            **{name: entry[name] for name in ("rate", "low", "high")},
            "within": entry["low"] <= share <= entry["high"],
        },
        "known_are": SAYS,
        "prompts": {"log": len(log), "known": known},
        "flagged": counts((kind, flagged) for _, kind, flagged in log),
        "extracted_of_sampled": counts((item["kind"], item["extracted"]) for item in items),
        "memorized_of_sampled": counts((item["kind"], item["memorized"]) for item in items),
    }


def counts(pairs: Iterable[tuple[str, bool | None]]) -> dict[str, dict[str, int]]:
    """Of the prompts of each kind, how many there are and how many were found; not those that could not be judged."""
    found: dict[str, dict[str, int]] = {}
    for kind, hit in pairs:
        if hit is not None:
            entry = found.setdefault(kind, {"prompts": 0, "found": 0})
            entry["prompts"] += 1
            entry["found"] += hit
    return dict(sorted(found.items()))
