"""What each prompt is, as a table: its group, how often training showed it, and the picture that it came with."""

import csv
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from demo_data.examples import DemoData
from demo_data.grammar import Caption
from demo_data.groups import HALVES, PROMPT_GROUPS, TOP


class Row(NamedTuple):
    """One prompt.

    Attributes:
      caption: the prompt, taken apart.
      group: one of `PROMPT_GROUPS`, "ladder" or "template".
      half: of the four groups; the others have none.
      rate: how often training shows the caption, against `TOP` for a memorized one; 0 for never.
      picture: the caption's one picture, uint8 [64, 64, 3]; None where pictures are new each time, or never shown.
    """

    caption: Caption
    group: str
    half: str
    rate: float
    picture: np.ndarray | None


def rows(data: DemoData) -> Iterator[Row]:
    """All prompts, group by group, the ladder from its lowest rung."""
    pictures = data.fixed_pictures
    for group in PROMPT_GROUPS:
        for half in HALVES:
            for caption in data.groups.halves[group, half]:
                rate = float(TOP) if group in ("memorized", "control") else 0.0
                yield Row(caption, group, half, rate, pictures.get(caption))
    for times, captions in data.groups.ladder.items():
        for caption in captions:
            yield Row(caption, "ladder", "", float(times), pictures[caption])
    for template in data.groups.templates:
        for word in template.prompts:
            caption = template.caption(word)
            rate = data.template_rate if word in template.trained else 0.0
            yield Row(caption, "template", "", rate, data.template_picture(caption))


def count_captions(data: DemoData, indices: Iterator[np.ndarray], batches: int) -> Counter[str]:
    """How often the first batches of training examples, given by their indices, show each caption."""
    counts: Counter[str] = Counter()
    for _, some in zip(range(batches), indices, strict=False):
        counts.update(data.caption(int(index))[0].text for index in some)
    return counts


def write_truth(data: DemoData, path: Path, counts: Mapping[str, int] | None = None) -> None:
    """Writes the table as CSV; `shown` is empty unless a training run's counts are given."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "group", "half", "rate", "shown", "objects"])
        for row in rows(data):
            text = row.caption.text
            shown = "" if counts is None else counts.get(text, 0)
            writer.writerow([text, row.group, row.half, f"{row.rate:g}", shown, " ".join(row.caption.objects)])


def read_counts(path: Path) -> Counter[str]:
    """How often a training run showed each prompt, from the table that it wrote; none where there is no table."""
    if not path.exists():
        return Counter()
    with path.open(encoding="utf-8", newline="") as file:
        return Counter({row["prompt"]: int(row["shown"] or 0) for row in csv.DictReader(file)})
