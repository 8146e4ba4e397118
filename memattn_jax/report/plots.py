"""Plots with matplotlib, without a display."""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

LEGEND_ROWS = 8
# Okabe and Ito's colours, which colour-blind readers can distinguish; their yellow is too light for lines
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MITIGATED, PLAIN = COLOURS[:2]
BAND = "#dddddd"


def draw_band(axes: Axes, band: np.ndarray | None) -> None:
    """Shades the range of entropy of 90 % of clean prompts, [2, steps]; None shades nothing."""
    if band is not None:
        label = "90 % of clean prompts"
        axes.fill_between(np.arange(1, band.shape[1] + 1), *band, color=BAND, label=label, zorder=0)


def plot_entropy(
    path: Path | IO[bytes],
    entropy: np.ndarray,
    labels: Sequence[str],
    mitigated: np.ndarray,
    band: np.ndarray | None = None,
) -> None:
    """Attention entropy over the sampling steps, one line per image, as a PNG.

    Mitigated images are dashed and averaged separately, since the tokens that a mitigation masks lower the entropy
    of every prompt.

    Args:
      path: where to write, or an open file.
      entropy: [steps, rows], in nats.
      labels: one per row; shown if there are few rows, else means are drawn instead.
      mitigated: bool [rows].
      band: [2, steps], the range of entropy of most clean prompts without mitigation; None draws none.
    """
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    draw_band(axes, band)
    few = len(labels) <= LEGEND_ROWS
    steps = np.arange(1, len(entropy) + 1)
    for row, (values, label) in enumerate(zip(entropy.T, labels, strict=True)):
        colour = COLOURS[row % len(COLOURS)] if few else (MITIGATED if mitigated[row] else PLAIN)
        shown = label.replace("$", r"\$") if few else None
        style = f"{'.' * few}{'--' if mitigated[row] else '-'}"
        axes.plot(steps, values, style, color=colour, alpha=1 if few else 0.15, label=shown)
    finite = np.isfinite(entropy).all(axis=0)
    kinds = (("not mitigated", PLAIN, "-", ~mitigated), ("mitigated", MITIGATED, "--", mitigated))
    for kind, colour, line, rows in () if few else kinds:
        if (drawn := finite & rows).any():
            mean = entropy[:, drawn].mean(axis=1)
            axes.plot(steps, mean, line, color="white", linewidth=5)
            axes.plot(steps, mean, line, color=colour, linewidth=2.5, label=f"mean of {drawn.sum()} {kind}")
    figure.legend(loc="outside lower center", fontsize="small")
    note = "\nmitigated: lower whatever the prompt, since tokens are masked" if mitigated.any() else ""
    axes.set_title(f"Cross-attention entropy, mean over layers and heads{note}", fontsize="medium")
    axes.set(xlabel="sampling step", ylabel="entropy (nats), higher: more like memorized")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=(1, 2, 5, 10)))
    axes.grid(alpha=0.3)
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Glyph .* missing"
        )  # a prompt may be in any script, and missing glyphs become boxes
        figure.savefig(path, dpi=120, format="png")


def plot_training(path: Path, metrics: Path) -> None:
    """Loss, the gate's mean score and the share of rows it kept over the steps, as a PNG.

    Args:
      path: where to write.
      metrics: metrics.jsonl of a training run.
    """
    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    steps = [row["step"] for row in rows]
    figure = Figure(figsize=(8, 7), layout="constrained")
    panels = (("loss", "loss"), ("score", "gate's score, mean of the batch"), ("kept", "share of rows kept"))
    for axes, (name, label) in zip(figure.subplots(len(panels), sharex=True), panels, strict=True):
        axes.plot(steps, [row[name] for row in rows], linewidth=0.8)
        axes.set(ylabel=label)
        axes.grid(alpha=0.3)
    axes.set(xlabel="step")
    figure.savefig(path, dpi=120)


def save_grid(path: Path, rows: Sequence[np.ndarray]) -> None:
    """Saves images as one PNG, a row for each uint8 [columns, height, width, 3]."""
    Image.fromarray(np.concatenate([np.concatenate(list(row), axis=1) for row in rows], axis=0)).save(path)
