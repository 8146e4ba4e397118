"""Plots, by matplotlib without a display."""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

LEGEND_ROWS = 8


def plot_entropy(path: Path | IO[bytes], entropy: np.ndarray, labels: Sequence[str]) -> None:
    """Attention entropy over the sampling steps, one line a picture, as a PNG.

    Args:
      path: where to write, or an open file.
      entropy: [steps, rows], in nats.
      labels: one a row; shown while the rows are few, else their mean is drawn instead.
    """
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    few = len(labels) <= LEGEND_ROWS
    steps = np.arange(1, len(entropy) + 1)
    for values, label in zip(entropy.T, labels, strict=True):
        axes.plot(steps, values, marker=".", alpha=1.0 if few else 0.25, label=label.replace("$", r"\$"))
    finite = np.isfinite(entropy).all(axis=0)
    if few:
        figure.legend(loc="outside lower center", fontsize="small")
    elif finite.any():
        mean = entropy[:, finite].mean(axis=1)
        axes.plot(steps, mean, color="black", linewidth=2, label=f"mean of {finite.sum()}")
        axes.legend(handles=axes.lines[-1:])
    axes.set(
        title="Entropy of the cross-attention, mean over layers and heads",
        xlabel="sampling step",
        ylabel="entropy (nats)",
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a prompt may be in any script; boxes stand for it
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
    """Pictures as one PNG: a row for each uint8 [columns, height, width, 3]."""
    Image.fromarray(np.concatenate([np.concatenate(list(row), axis=1) for row in rows], axis=0)).save(path)
