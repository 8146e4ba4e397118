"""Sampled prompts as the report's page reads them: a short line to sort and filter by, and a block to show."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from memattn_jax.detectors.calibration.attention_excess import standing_out
from memattn_jax.detectors.calibration.verdicts import UNKNOWN
from memattn_jax.report.html.thumbnails import Plan, Thumbnails

HEAD = 300  # characters of a prompt that are searched
SHARP = 4  # significant digits of numbers in the page

SHOWN = ("prompt", "verdict", "over", "agreement", "mitigated_agreement", "tokens", "error")

Item = Mapping[str, Any]


class Overview(NamedTuple):
    """What the page must know of all prompts before it shows one.

    Attributes:
      seeds: images of a prompt at most.
      images: of all prompts, without and with the mitigation.
      others: pictures to show besides, about.
      kinds: names of kinds, sorted.
      ranges: lowest and highest score of each detector.
    """

    seeds: int
    images: int
    others: int
    kinds: list[str]
    ranges: dict[str, tuple[float, float]]


def read_items(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of items.jsonl, one in memory at a time."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def overview(items: Iterator[Item]) -> Overview:
    """Reads all items once."""
    seeds, images, others, kinds = 0, 0, 0, set()
    ranges: dict[str, tuple[float, float]] = {}
    for item in items:
        seeds = max(seeds, len(item["images"]), len(item["mitigated"]))
        images += len(item["images"]) + len(item["mitigated"])
        others += 1 + len(item["heatmaps"])
        kinds |= {item["kind"]} - {None}
        for name, score in item["scores"].items():
            if score is not None:
                low, high = ranges.get(name, (score, score))
                ranges[name] = min(low, score), max(high, score)
    return Overview(seeds, images, others, sorted(kinds), ranges)


def script_json(value: Any) -> Markup:
    """JSON that may stand in a script element: ASCII alone, which browsers keep in one byte a character, and no "<"."""
    return Markup(json.dumps(value, separators=(",", ":")).replace("<", "\\u003c"))


def best(item: Item, measure: str | None) -> tuple[float | None, int]:
    """The highest similarity of a prompt's pictures to a training picture, and which picture has it."""
    found = [image["similarity"].get(measure) for image in item["images"]]
    known = [(value, -place) for place, value in enumerate(found) if value is not None]
    if not known:
        return None, 0
    value, place = max(known)
    return value, -place


def index_row(item: Item, kinds: Sequence[str], detectors: Sequence[str], measure: str | None) -> list[Any]:
    """What prompts are sorted and filtered by; the page's script names the columns."""
    agreement = item["agreement"] or {}
    return [
        item["row"],
        None if item["verdict"] == UNKNOWN else item["flagged"],
        item["memorized"],
        item["extracted"],
        sum(bool(image["copy"]) for image in item["mitigated"]),
        rounded(item["p"]),
        rounded(best(item, measure)[0]),
        rounded(agreement.get("mean")),
        None if item["kind"] is None else kinds.index(item["kind"]),
        item["error"] is not None,
        [rounded(item["scores"].get(name)) for name in detectors],
        item["prompt"][:HEAD],
    ]


def block(item: Item, thumbnails: Thumbnails, plan: Plan, measure: str | None) -> dict[str, Any]:
    """All that is shown of a prompt, with its thumbnails.

    Pictures that are one file, as the training picture that several seeds are nearest to, are held once.
    """
    images, mitigated = item["images"], item["mitigated"]
    place = best(item, measure)[1]
    shown = sorted(range(len(images)), key=lambda at: at != place)[: plan.seeds]
    files = [images[at]["file"] for at in shown] + [images[at]["nearest"] for at in shown[:1]]
    files += [image["file"] for image in mitigated[: plan.seeds]]
    wanted = list(dict.fromkeys(file for file in files if file is not None))
    heat = thumbnails.pictures([each["file"] for each in item["heatmaps"]])
    return {
        **{name: item[name] for name in SHOWN},
        "attention": [rounded(value) for value in item["attention"]],
        "excess": [rounded(value) for value in item["attention_excess"] or ()],
        "blamed": standing_out(item["tokens"], item["attention_excess"] or (), item["blamed"] or ()),
        "images": [picture(image) for image in images],
        "mitigated": [picture(image) for image in mitigated],
        "best": place,
        "pictures": dict(zip(wanted, thumbnails.pictures(wanted), strict=True)),
        "heat": {each["token"]: uri for each, uri in zip(item["heatmaps"], heat, strict=True)},
        "mask": None if item["copy_mask"] is None else thumbnails.mask(item["copy_mask"]),
    }


def picture(image: Item) -> dict[str, Any]:
    """What is shown beside a picture."""
    similarity = {name: rounded(value) for name, value in image["similarity"].items()}
    kept = {name: image.get(name) for name in ("seed", "file", "nearest", "nearest_source", "copy")}
    return kept | {"similarity": similarity}


def rounded(value: float | None) -> float | None:
    """The number with `SHARP` significant digits."""
    return None if value is None else float(f"{value:.{SHARP}g}")
