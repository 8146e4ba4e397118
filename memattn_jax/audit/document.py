"""audit.json: its parts, from what the stages of an audit found."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memattn_jax.audit.folder import digests, file_digest
from memattn_jax.audit.rates import EXACT, FLAGGED, NOT_FLAGGED, UNKNOWN, share_of, stratum_rate
from memattn_jax.audit.strata import Drawn
from memattn_jax.detectors.calibration import load_calibration

if TYPE_CHECKING:
    from memattn_jax.detectors.calibration.verdicts import Rule


def model_files(place: Path) -> list[dict[str, Any]]:
    """The files of a checkpoint, a folder or one file, each with its size and digest."""
    root = place if place.is_dir() else place.parent
    inside = [path for path in place.rglob("*") if path.is_file()] if place.is_dir() else [place]
    paths = sorted(path for path in inside if not any(part.startswith(".") for part in path.relative_to(root).parts))
    return [
        {"path": path.relative_to(root).as_posix(), "bytes": path.stat().st_size, "sha256": found}
        for path, found in zip(paths, digests(paths), strict=True)
    ]


def detection_block(
    rule: "Rule", detectors: Sequence[str], level: float, drawn: Drawn, calibration: Path
) -> dict[str, Any]:
    """How prompts were flagged.

    Args:
      rule: for verdicts.
      detectors: all that were run; those that the rule does not know have no threshold.
      level: of the joint p-value; with a false discovery rate it follows from the log.
      drawn: the log by strata.
      calibration: the file, in the audit's folder.
    """
    fitted = load_calibration(calibration)
    thresholds = rule.joint.thresholds(level) if level > 0 else {}
    limits = {name: None if (own := thresholds.get(name)) is None or own == float("inf") else own for name in detectors}
    counts = {name: drawn.total(name) for name in (FLAGGED, NOT_FLAGGED, UNKNOWN)}
    return {
        "detectors": {name: {"threshold": limit, "larger_is_memorized": True} for name, limit in limits.items()},
        "control": {"of": "fpr", "rate": rule.fpr} if rule.fdr is None else {"of": "fdr", "rate": rule.fdr},
        "calibration": {
            "prompts": len(next(iter(fitted.scores.values()))),
            "sha256": file_digest(calibration),
            "source": f"{calibration.parent.name}/{calibration.name}",
        },
        "scored": sum(counts.values()),
        "flagged": counts[FLAGGED],
        "not_flagged": counts[NOT_FLAGGED],
        "unknown": counts[UNKNOWN],
        "unscored": drawn.unscored,
    }


def confirmation_block(
    drawn: Drawn, items: Sequence[Mapping[str, Any]], measures: Sequence[Mapping[str, Any]], seeds: int, seed: int
) -> dict[str, Any]:
    """What was sampled, and what images were compared by."""
    kinds = sorted({kind for _, kind in drawn.sizes if kind is not None})
    strata = []
    for stratum in (FLAGGED, NOT_FLAGGED, UNKNOWN):
        for kind in (None, *kinds):
            prompts = sum(n for (name, own), n in drawn.sizes.items() if name == stratum and kind in (None, own))
            sampled = sum(one["stratum"] == stratum and kind in (None, one["kind"]) for one in items)
            strata.append({"stratum": stratum, "kind": kind, "prompts": prompts, "sampled": sampled})
    return {
        "measures": list(measures),
        "seeds": seeds,
        "flagged_sampled": len(drawn.rows[FLAGGED]),
        "unflagged_sampled": len(drawn.rows[NOT_FLAGGED]),
        "unknown_sampled": len(drawn.rows[UNKNOWN]),
        "strata": strata,
        "drawn_with_seed": seed,
    }


def as_mitigated(item: Mapping[str, Any]) -> dict[str, Any]:
    """A line of items.jsonl as if its mitigated images were the plain ones, for the same rates."""
    from memattn_jax.audit.evidence import is_memorized

    copies = [image["copy"] for image in item["mitigated"] if image["copy"] is not None]
    extracted = any(copies) if copies else None
    finite = sum(image["finite"] for image in item["mitigated"])
    memorized = is_memorized(item["mitigated_agreement"], finite, extracted)
    return {"images": item["mitigated"], "extracted": extracted, "memorized": memorized}


def mitigated_rates(items: Sequence[Mapping[str, Any]], whats: Sequence[str]) -> list[dict[str, Any]]:
    """Rates of the flagged prompts that were sampled, without and with the mitigation, on the same seeds."""
    own = [item for item in items if item["flagged"] and item["mitigated"]]
    entries = []
    for what in whats if own else ():
        for of, rows in ((FLAGGED, own), ("mitigated", [as_mitigated(item) for item in own])):
            entries.append(stratum_rate(what, of, None, share_of(rows, what, len(own))))
    assert all(entry["method"] == EXACT for entry in entries)
    return entries
