"""Memory by degrees: what the model and the detectors make of the ladder's rungs and of the templates."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from demo_data import DemoData
from demo_data.grammar import Caption
from demo_data.truth import rows
from matplotlib.figure import Figure

from demo_evaluation.likeness import CORRELATION
from memattn_jax.report.plots import COLOURS


class Level(NamedTuple):
    """Prompts that training showed equally often.

    Attributes:
      title: what they are.
      rate: how often, against 256 times for a memorized one.
      captions: the prompts, taken apart.
      pictures: their pictures, uint8 [prompts, height, width, 3].
    """

    title: str
    rate: float
    captions: tuple[Caption, ...]
    pictures: np.ndarray

    @property
    def is_template(self) -> bool:
        """Whether these are templates' prompts."""
        return self.title.startswith("template")

    @property
    def name(self) -> str:
        """For files; memorized ones are the reported half's."""
        return "memorized-report" if self.title == "memorized" else f"{self.title.replace(', ', '-')} {self.rate:.3g}"

    @property
    def texts(self) -> list[str]:
        """The prompts."""
        return [caption.text for caption in self.captions]


def levels(data: DemoData) -> list[Level]:
    """The ladder from below, the memorized prompts of the reported half, and the templates' known and new objects."""
    found: dict[tuple[str, float], list[tuple[Caption, np.ndarray]]] = {}
    for row in rows(data):
        if row.picture is not None and row.half != "choose":
            found.setdefault((row.group, row.rate), []).append((row.caption, row.picture))
    order = sorted(found, key=lambda level: ("lmt".index(level[0][0]), level[1]))
    made = []
    for group, rate in order:
        captions, pictures = zip(*found[group, rate], strict=True)
        title = f"{group}, {'known' if rate else 'new'} object" if group == "template" else group
        made.append(Level(title, rate, captions, np.stack(pictures)))
    return made


def background_likeness(data: DemoData, level: Level, images: np.ndarray) -> np.ndarray:
    """Correlation of samples of templates with the template, where its object is not; float64 [prompts, seeds]."""
    found = []
    for caption, target, some in zip(level.captions, level.pictures, images, strict=True):
        outside = (data.template_picture(caption, blank=True) == target).all(axis=-1)
        found.append(CORRELATION.compare(some[:, outside][:, None], target[outside][None, None])[:, 0])
    return np.stack(found)


def plot_series(path: Path, rates: Sequence[float], series: Mapping[str, Sequence[float]]) -> None:
    """Lines over how often a picture was shown, on a logarithmic axis, as a PNG."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for number, (name, values) in enumerate(series.items()):
        style = ("-", "--", ":")[number // len(COLOURS)]
        axes.plot(rates, values, style, marker="o", color=COLOURS[number % len(COLOURS)], label=name)
    axes.set_xscale("log", base=4)
    axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
    axes.set(
        xlabel="times shown, of 256 for a memorized picture", ylabel="share reproduced, or AUROC", ylim=(-0.02, 1.02)
    )
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=150)
