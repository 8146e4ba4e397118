"""What happens over the sampling steps: each token's share of the attention, and its entropy."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from memattn_jax.report.figures.rendering import percent, wrapped
from memattn_jax.report.heatmaps import COLOURS
from memattn_jax.report.plots import BAND
from memattn_jax.report.plots import COLOURS as DISTINCT

FAINTEST = 1e-3  # share of the attention at the dark end of the scale
PER_ROW = 2  # prompts beside each other
WIDTH = 4.0  # inches of a prompt's panel, without its labels
MEMORIZED = DISTINCT[1]
LINES = tuple(colour for colour in DISTINCT if colour != MEMORIZED)  # of prompts, as many as are drawn
MARKERS = "osv^D*"


class Shares(NamedTuple):
    """The attention of one prompt.

    Attributes:
      heading: the prompt.
      labels: of its tokens, drawn as they are.
      shares: float [steps, labels], mean over pixels, heads and layers.
      summary: bool [labels], which of them are the end token and the padding.
    """

    heading: str
    labels: Sequence[str]
    shares: np.ndarray
    summary: np.ndarray


def plot_shares(prompts: Sequence[Shares]) -> Figure:
    """Draws the share of each token at each step as colours, on a logarithmic scale that all prompts have in common."""
    rows = -(-len(prompts) // PER_ROW)
    columns = min(PER_ROW, len(prompts))
    tallest = max(len(each.labels) for each in prompts)
    size = ((WIDTH + 0.6) * columns + 0.8, (0.24 * tallest + 0.9) * rows + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels[len(prompts) :]:
        axes.set_axis_off()
    norm = LogNorm(FAINTEST, 1)
    for axes, each in zip(panels, prompts, strict=False):
        steps = len(each.shares)
        extent = (0.5, steps + 0.5, len(each.labels) - 0.5, -0.5)
        image = axes.imshow(
            np.maximum(each.shares.T, FAINTEST), aspect="auto", norm=norm, cmap=COLOURS, extent=extent,
            interpolation="nearest",
        )  # fmt: skip
        axes.set_yticks(range(len(each.labels)), each.labels, fontsize="small")
        for label, summary in zip(axes.get_yticklabels(), each.summary, strict=True):
            label.set_fontweight("bold" if summary else "normal")
        axes.set_title(wrapped(each.heading, WIDTH + 0.6), fontsize="medium")
        axes.set_xlabel("sampling step; more on the bold rows: more like memorized", fontsize="small")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=(1, 2, 5, 10)))
    bar = figure.colorbar(image, ax=panels, format=FuncFormatter(lambda share, _: percent(share)))
    bar.set_label("share of the attention", fontsize="small")
    return figure


class Band(NamedTuple):
    """A group of prompts: float [steps] each.

    Attributes:
      label: what the group is, and how much of it lies between the edges.
      low: the lower edge.
      middle: the median; None draws none.
      high: the upper edge.
    """

    label: str
    low: np.ndarray
    middle: np.ndarray | None
    high: np.ndarray


def band_of(entropy: np.ndarray, name: str) -> Band:
    """The middle 90 % of a group and its median, of entropies [prompts, steps]."""
    low, middle, high = np.quantile(entropy, (0.05, 0.5, 0.95), axis=0)
    return Band(f"90 % of {len(entropy)} {name} prompts, and median", low, middle, high)


def plot_entropies(prompts: Mapping[str, np.ndarray], clean: Band | None, memorized: Band | None) -> Figure:
    """Draws the attention entropy over the steps: a line for each prompt, float [steps], over the groups' bands.

    Args:
      prompts: {heading as it is drawn: entropy}; the first of `LINES` are drawn.
      clean: what clean prompts have; None draws none.
      memorized: likewise.
    """
    figure = Figure(figsize=(8.5, 4.6), layout="constrained")
    axes = figure.subplots()
    for band, colour, hatch, line in ((clean, "#777777", None, "--"), (memorized, MEMORIZED, "//", "-.")):
        if band is None:
            continue
        steps = np.arange(1, len(band.low) + 1)
        shade = {"facecolor": BAND} if hatch is None else {"facecolor": "none", "edgecolor": colour, "linewidth": 0}
        axes.fill_between(steps, band.low, band.high, hatch=hatch, alpha=0.7, label=band.label, zorder=0, **shade)
        if band.middle is not None:
            axes.plot(steps, band.middle, line, color=colour, linewidth=1.5)
    for (heading, entropy), colour, marker in zip(prompts.items(), LINES, MARKERS, strict=False):
        steps = np.arange(1, len(entropy) + 1)
        every = max(1, len(steps) // 8)
        axes.plot(steps, entropy, color=colour, marker=marker, markevery=every, markersize=5, label=heading)
    axes.set_title("Attention entropy, mean over layers and heads: higher is more like memorized", fontsize="medium")
    axes.set(xlabel="sampling step", ylabel="entropy (nats)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=(1, 2, 5, 10)))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", fontsize="small", ncols=1)
    return figure
