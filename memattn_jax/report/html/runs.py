"""Pages about the tables of `detect` and `generate`, in the form that an audit's report has."""

import heapq
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any, NamedTuple

from memattn_jax import __version__
from memattn_jax.detectors.calibration.verdicts import MEMORIZED, Rule
from memattn_jax.errors import InputError
from memattn_jax.report.findings import in_parts, picked
from memattn_jax.report.html.items import Item
from memattn_jax.report.html.pages import Gallery, page
from memattn_jax.report.html.writer import NAME
from memattn_jax.runs.shards import Row
from memattn_jax.text import counted

if TYPE_CHECKING:
    from memattn_jax.runs.table import ShardedTable
    from memattn_jax.storage import Store

SHOWN = 3000  # rows of a page
GUARD = "guard_score"
METRICS = ("E", "D", GUARD)  # scores of an image
EXPLAINED = ("tokens", "attention", "attention_excess", "blamed")  # columns of a table with `explain`
NOTHING: dict[str, Any] = {  # what an audit knows of a prompt, and these commands do not
    **dict.fromkeys(("kind", "flagged", "verdict", "p", "memorized", "extracted", "attention_excess", "blamed")),
    **dict.fromkeys(("agreement", "mitigated_agreement", "copy_mask")),
    **{name: [] for name in ("over", "tokens", "attention", "images", "mitigated", "heatmaps")},
}


class Judged(NamedTuple):
    """How the verdicts of a table of detections came about.

    Attributes:
      rule: None without a calibration.
      level: of the joint p-value, from which they follow; None without a rule.
      settle: maps rows to the same with their verdicts.
    """

    rule: Rule | None
    level: float | None
    settle: Callable[[Sequence[Row]], list[Row]]

    def thresholds(self, detectors: Sequence[str]) -> dict[str, float | None]:
        """Above which each score alone makes the verdict; None where no score does."""
        limits = {} if self.rule is None or not self.level else self.rule.joint.thresholds(self.level)
        return {name: limit if math.isfinite(limit := limits.get(name, math.inf)) else None for name in detectors}


def detection_item(row: Row, detectors: Sequence[str]) -> Item:
    """A row of a table of detections as an item of a page."""
    known = {name: row[name] for name in ("kind", "verdict", "p", "over") if row.get(name) is not None}
    known |= {name: row[name] for name in EXPLAINED if isinstance(row.get(name), list)}  # no kept column of this name
    flagged = None if row["verdict"] is None else row["verdict"] == MEMORIZED
    own = {"row": row["row"], "prompt": row["prompt"], "flagged": flagged, "error": row["error"]}
    return NOTHING | known | own | {"scores": {name: row[name] for name in detectors}}


def write_detection_page(
    table: "ShardedTable", detectors: Sequence[str], judged: Judged, about: Mapping[str, Any]
) -> str:
    """Writes report.html about a finished table of detections; returns what it shows, in words.

    Of a long table it shows those rows that are flagged or score highest.

    Args:
      table: of all rows.
      detectors: names of its score columns.
      judged: how verdicts were made.
      about: model and settings.
    """
    verdicts: Counter[str | None] = Counter()

    def settled(rows: Iterable[Row]) -> Iterator[Row]:
        for part in in_parts(rows):
            yield from judged.settle(part)

    def ranked() -> Iterator[tuple[tuple[float, float], int]]:
        for row in settled(table.rows(["row", "length", "p", "verdict", "over", *detectors])):
            verdicts[row["verdict"]] += 1
            score = row[detectors[0]]
            rank = -math.inf if row["p"] is None else -row["p"], -math.inf if score is None else score
            yield rank, -row["row"]

    chosen = {-number for _, number in heapq.nlargest(SHOWN, ranked())}
    gallery = Gallery(
        lambda: (detection_item(row, detectors) for row in settled(picked(table, chosen))),
        judged.thresholds(detectors),
        lambda name: b"",
    )
    total = sum(verdicts.values())
    pieces = page(
        "run.html",
        gallery,
        version=__version__,
        title="Detection",
        about=about,
        sentence=verdict_sentence(verdicts, judged.rule),
        note="Flagged is the detectors' verdict and nothing more: no image was compared with a training image.",
        shown=len(chosen),
        total=total,
        noun="prompts",
    )
    write(table.store, pieces)
    return f"{NAME} with {counted(len(chosen), 'prompt')}"


def verdict_sentence(verdicts: Mapping[str | None, int], rule: Rule | None) -> str:
    """How many prompts are flagged, and how many of them to expect by chance."""
    total = counted(sum(verdicts.values()), "prompt")
    if rule is None:
        return f"{total} were scored. Without a calibration there are no verdicts."
    flagged = verdicts.get(MEMORIZED, 0)
    if rule.fpr is None:
        return f"{flagged} of {total} are flagged at a false discovery rate of {100 * (rule.fdr or 0):g} %."
    chance = rule.fpr * sum(verdicts.values())
    return (
        f"{flagged} of {total} are flagged at a false-positive rate of {100 * rule.fpr:g} %; {chance:.1f} would be "
        "expected if all of them were clean."
    )


def image_item(row: Row) -> Item:
    """A row of a table of images as an item of a page."""
    image = {"seed": row["seed"], "file": row["file"], "finite": row["file"] is not None}
    image |= {"similarity": {}, "nearest": None, "nearest_source": None, "copy": None}
    own = {"row": row["row"], "prompt": row["prompt"], "error": row["error"], "images": [image]}
    if row["file"] is not None:
        own |= {"tokens": row["tokens"], "attention": row["attention"]}
        own["kind"] = "mitigated" if row["mitigated"] else "not mitigated"
    return NOTHING | own | {"scores": {name: row[name] for name in METRICS}}


def write_images_page(table: "ShardedTable", made: int, about: Mapping[str, Any], limit: float | None) -> str:
    """Writes report.html about the first images of a finished table; returns what it shows, in words.

    Args:
      table: of all rows.
      made: number of images.
      about: model and settings.
      limit: the guard's threshold; None without one.
    """

    def rows() -> Iterator[Row]:
        return takewhile(lambda row: row["row"] < SHOWN, table.rows())

    def read(name: str) -> bytes:
        content = table.store.read(name)
        if content is None:
            raise InputError(f"{table.store}: {name} is missing; run the command again")
        return content

    shown = sum(1 for _ in rows())
    scores = {"E": None, "D": None} | ({} if limit is None else {GUARD: limit})
    pieces = page(
        "run.html",
        Gallery(lambda: map(image_item, rows()), scores, read, noun="images"),
        version=__version__,
        title="Generated images",
        about=about,
        sentence=f"{counted(made, 'image')}.",
        note="E and D are attention entropies; higher points to memorization. No image was compared with a training "
        "image.",
        shown=shown,
        total=table.jobs,
        noun="images",
    )
    write(table.store, pieces)
    return f"{NAME} with {counted(shown, 'image')}"


def write(store: "Store", pieces: Iterator[str]) -> None:
    """Writes a page into a store, which writes files whole."""
    store.write(NAME, "".join(pieces).encode())
