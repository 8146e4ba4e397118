"""How well the attention entropy separates memorized from clean prompts, at each layer and step."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from memattn_jax.evaluation.metrics import auroc
from memattn_jax.report.figures.rendering import short_site

DIVERGING = "PuOr_r"  # purple and orange differ to colour-blind readers, and white lies between


def separation(memorized: Mapping[str, np.ndarray], clean: Mapping[str, np.ndarray]) -> np.ndarray:
    """AUROC of the entropy of memorized against clean prompts, float64 [sites, steps].

    Args:
      memorized: {site: entropy, float [prompts, steps]}.
      clean: likewise.
    """
    return np.array(
        [[auroc(one, other) for one, other in zip(memorized[site].T, clean[site].T, strict=True)] for site in memorized]
    )


def plot_separation(areas: np.ndarray, sites: tuple[str, ...], entropy_site: str, prompts: tuple[int, int]) -> Figure:
    """Draws the areas as colours, the layer that metric E reads marked.

    Args:
      areas: AUROC [sites, steps].
      sites: names of the layers, in forward order.
      entropy_site: where metric E is read, at the first step.
      prompts: numbers of memorized and of clean prompts.
    """
    figure = Figure(figsize=(8.5, 0.27 * len(sites) + 1.9), layout="constrained")
    axes = figure.subplots()
    extent = (0.5, areas.shape[1] + 0.5, len(sites) - 0.5, -0.5)
    image = axes.imshow(areas, aspect="auto", vmin=0, vmax=1, cmap=DIVERGING, extent=extent, interpolation="nearest")
    names = [f"E ▸ {short_site(site)}" if site == entropy_site else short_site(site) for site in sites]
    axes.set_yticks(range(len(sites)), names, fontsize="small")
    for label, site in zip(axes.get_yticklabels(), sites, strict=True):
        label.set_fontweight("bold" if site == entropy_site else "normal")
    memorized, clean = prompts
    axes.set_title(f"How entropy separates {memorized} memorized from {clean} clean prompts", fontsize="medium")
    axes.set(xlabel="sampling step", ylabel="cross-attention layer, first to last")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=(1, 2, 5, 10)))
    bar = figure.colorbar(image, ax=axes, ticks=(0, 0.25, 0.5, 0.75, 1))
    bar.ax.set_yticklabels(["0: memorized\nalways lower", "0.25", "0.5: chance", "0.75", "1: memorized\nalways higher"])
    bar.ax.tick_params(labelsize="small")
    bar.set_label("AUROC", fontsize="small")
    return figure
