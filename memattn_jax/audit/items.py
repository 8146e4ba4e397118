"""The lines of items.jsonl: everything that is known of a prompt that was sampled."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memattn_jax.audit.evidence import Nearest, is_memorized
from memattn_jax.audit.rates import FLAGGED
from memattn_jax.audit.strata import stratum_of
from memattn_jax.prompts.record import valid_text

DIGITS = 6


@dataclass
class Facts:
    """What images were compared with, by their paths.

    Attributes:
      images: folder of the plain ones.
      mitigated: folder of the mitigated ones.
      nearest: of each image; empty without training pictures.
      agreement: of each prompt, {row: entry}.
      mitigated_agreement: likewise.
      thumbnails: {training picture: its file in the audit's folder}.
      pictures: folder of the training pictures; None without.
      heatmaps: of each prompt, {row: entries}.
      masks: where the copy is, {row: file in the audit's folder}.
      unreadable: number of training pictures that could not be compared with.
    """

    images: Path
    mitigated: Path
    nearest: Mapping[Path, Nearest] = field(default_factory=dict)
    agreement: Mapping[int, Mapping[str, Any] | None] = field(default_factory=dict)
    mitigated_agreement: Mapping[int, Mapping[str, Any] | None] = field(default_factory=dict)
    thumbnails: Mapping[Path, str] = field(default_factory=dict)
    pictures: Path | None = None
    heatmaps: Mapping[int, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    masks: Mapping[int, str] = field(default_factory=dict)
    unreadable: int = 0

    def image(self, shot: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        """An entry for a sampled image."""
        entry = {"seed": shot["seed"], "file": None, "finite": shot["finite"], "similarity": {}, "copy": None}
        if shot["file"] is not None:
            path = folder / shot["file"]
            entry["file"] = f"{folder.name}/{shot['file']}"
            if path in self.nearest:
                entry |= {"similarity": self.nearest[path].similarity, "copy": self.nearest[path].copy}
        return entry

    def source(self, shot: Mapping[str, Any]) -> dict[str, Any]:
        """The same image's nearest training picture."""
        found = None if shot["file"] is None else self.nearest.get(self.images / shot["file"])
        if found is None or self.pictures is None:
            return {"nearest": None, "nearest_source": None}
        inside = valid_text(found.reference.relative_to(self.pictures).as_posix())
        return {"nearest": self.thumbnails[found.reference], "nearest_source": inside}

    def extracted(self, line: Mapping[str, Any]) -> Path:
        """The training picture that the first copy among a line's images shows; its name in the line may differ."""
        file = next(image["file"] for image in line["images"] if image["copy"])
        return self.nearest[self.images.parent / file].reference


def shots_by_row(shots: Iterable[Mapping[str, Any]]) -> dict[int, list[Mapping[str, Any]]]:
    """Sampled images by the number of their prompt in the log."""
    found: dict[int, list[Mapping[str, Any]]] = {}
    for shot in shots:
        found.setdefault(shot["log_row"], []).append(shot)
    return found


def item(
    row: Mapping[str, Any],
    detectors: Iterable[str],
    kind: str | None,
    shots: Sequence[Mapping[str, Any]],
    mitigated: Sequence[Mapping[str, Any]],
    facts: Facts,
) -> dict[str, Any]:
    """A line.

    Args:
      row: of the detection table, with its final verdict.
      detectors: its columns of scores.
      kind: its column with the prompt's kind.
      shots: the prompt's sampled images, rows of their table.
      mitigated: likewise with the mitigation.
      facts: what they were compared with.
    """
    images = [facts.image(shot, facts.images) | facts.source(shot) for shot in shots]
    copies = [image["copy"] for image in images if image["copy"] is not None]
    extracted = any(copies) if copies else None
    agreement = facts.agreement.get(row["row"])
    finite = sum(image["finite"] for image in images)
    errors = [text for text in (row["error"], *(shot["error"] for shot in shots)) if text]
    stratum = stratum_of(row)
    return {
        "row": row["row"],
        "prompt": row["prompt"],
        "kind": None if kind is None else row[kind],
        "stratum": stratum,
        "flagged": stratum == FLAGGED,
        "verdict": row["verdict"],
        "p": row["p"],
        "scores": {name: row[name] for name in detectors},
        "over": row["over"],
        "memorized": is_memorized(agreement, finite, extracted),
        "extracted": extracted,
        "tokens": row["tokens"],
        "attention": rounded(row["attention"]),
        "attention_excess": rounded(row["attention_excess"]),
        "blamed": row["blamed"],
        "images": images,
        "agreement": agreement,
        "mitigated": [facts.image(shot, facts.mitigated) for shot in mitigated],
        "mitigated_agreement": facts.mitigated_agreement.get(row["row"]),
        "heatmaps": list(facts.heatmaps.get(row["row"], ())),
        "copy_mask": facts.masks.get(row["row"]),
        "error": "; ".join(dict.fromkeys(errors)) or None,
    }


def rounded(values: Sequence[float | None] | None) -> list[float | None] | None:
    """Shares of attention, without the digits that float32 does not have."""
    return None if values is None else [None if value is None else round(value, DIGITS) for value in values]
