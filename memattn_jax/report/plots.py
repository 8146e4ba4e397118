"""Plots, by matplotlib without a display."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

LEGEND_ROWS = 8


def plot_entropy(path: Path, entropy: np.ndarray, labels: Sequence[str]) -> None:
    """Attention entropy over the sampling steps, one line a picture, as a PNG.

    Args:
      path: where to write.
      entropy: [steps, rows], in nats.
      labels: one a row; shown while the rows are few, else their mean is drawn instead.
    """
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    few = len(labels) <= LEGEND_ROWS
    for values, label in zip(entropy.T, labels, strict=True):
        short = label if len(label) <= 60 else label[:59] + "…"
        axes.plot(values, marker=".", alpha=1.0 if few else 0.25, label=short.replace("$", r"\$"))
    if few:
        figure.legend(loc="outside lower center", fontsize="small")
    else:
        axes.plot(np.nanmean(entropy, axis=1), color="black", linewidth=2, label=f"mean of {len(labels)}")
        axes.legend(handles=axes.lines[-1:])
    axes.set(
        title="Entropy of the cross-attention, mean over layers and heads",
        xlabel="sampling step",
        ylabel="entropy (nats)",
    )
    axes.grid(alpha=0.3)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a prompt may be in any script; boxes stand for it
        figure.savefig(path, dpi=120)
