"""How well each detector separates memorized from clean prompts: the table, the ROC plot and evaluation.json."""

import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from memattn_jax.evaluation.metrics import auroc, auroc_interval, nearest_tpr_at_fpr, roc_curve, tpr_at_fpr

FALSE_POSITIVE_RATES = (0.01, 0.03, 0.05, 0.10)


@dataclass(frozen=True)
class Evaluated:
    """One detector's scores and cost.

    Attributes:
      memorized: float32 [n], of memorized prompts, without those that are not finite.
      clean: likewise, of clean prompts.
      nan: number of scores left out.
      forwards_per_prompt: UNet forwards.
      seconds_per_prompt: measured, alone and compiled.
    """

    memorized: np.ndarray
    clean: np.ndarray
    nan: int
    forwards_per_prompt: float
    seconds_per_prompt: float

    def metrics(self) -> dict[str, Any]:
        """The detector's entry in evaluation.json; metrics are None where a class has no finite score."""
        names = [f"{rate:g}" for rate in FALSE_POSITIVE_RATES]
        cost = {
            "forwards_per_prompt": self.forwards_per_prompt,
            "seconds_per_prompt": self.seconds_per_prompt,
            "nan": self.nan,
        }
        if not len(self.memorized) or not len(self.clean):
            nothing = dict.fromkeys(names)
            return dict.fromkeys(("auroc", "auroc_low", "auroc_high")) | {"tpr": nothing, "tpr_nearest": nothing} | cost
        low, high = auroc_interval(self.memorized, self.clean)
        rates = list(zip(names, FALSE_POSITIVE_RATES, strict=True))
        return {
            "auroc": auroc(self.memorized, self.clean),
            "auroc_low": low,
            "auroc_high": high,
            "tpr": {name: tpr_at_fpr(self.memorized, self.clean, rate) for name, rate in rates},
            "tpr_nearest": {name: nearest_tpr_at_fpr(self.memorized, self.clean, rate) for name, rate in rates},
            **cost,
        }


def unresolved(clean: int) -> list[float]:
    """The false-positive rates for which these are too few clean prompts."""
    return [rate for rate in FALSE_POSITIVE_RATES if clean * rate < 1 - 1e-9]


def write_evaluation(
    out: Path, evaluated: Mapping[str, Evaluated], memorized: int, clean: int, about: dict[str, Any]
) -> str:
    """Writes evaluation.json, evaluation.md and roc.png, and returns the table.

    Args:
      out: the folder.
      evaluated: by detector.
      memorized: number of memorized prompts.
      clean: number of clean prompts.
      about: model, settings and versions, for evaluation.json.
    """
    detectors = {name: one.metrics() for name, one in evaluated.items()}
    content = {
        "detectors": detectors,
        "memorized": memorized,
        "clean": clean,
        "nan": sum(one.nan for one in evaluated.values()),
        "unresolved_fpr": unresolved(clean),
        **about,
    }
    (out / "evaluation.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    text = markdown(detectors)
    (out / "evaluation.md").write_text(text, encoding="utf-8")
    plot_roc(out / "roc.png", evaluated)
    return text


def markdown(detectors: Mapping[str, Mapping[str, Any]]) -> str:
    """A Markdown table with one row per detector."""

    def cell(value: float | None, digits: int = 3) -> str:
        return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"

    rates = [f"{rate:g}" for rate in FALSE_POSITIVE_RATES]
    header = ["detector", "AUROC", "95 % interval"]
    header += [f"TPR at {100 * float(rate):g} % FPR" for rate in rates]
    header += ["nearest, 1 %", "forwards", "seconds"]
    rows = [
        [
            name,
            cell(m["auroc"]),
            f"{cell(m['auroc_low'])} to {cell(m['auroc_high'])}",
            *(cell(m["tpr"][rate]) for rate in rates),
            cell(m["tpr_nearest"][rates[0]]),
            cell(m["forwards_per_prompt"], 2),
            cell(m["seconds_per_prompt"], 4),
        ]
        for name, m in detectors.items()
    ]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    return "".join(
        "| " + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) + " |\n"
        for line in lines
    )


def plot_roc(path: Path, evaluated: Mapping[str, Evaluated]) -> None:
    """ROC curves, the false-positive rate on a logarithmic axis, as a PNG."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    lowest = 1 / (2 * max((len(one.clean) for one in evaluated.values()), default=1) + 1)
    rates = np.geomspace(lowest, 1, 2000)
    for name, one in evaluated.items():
        if len(one.memorized) and len(one.clean):
            fpr, tpr = roc_curve(one.memorized, one.clean)
            style = ":" if one.forwards_per_prompt == 0 else "-"
            label = f"{name} {auroc(one.memorized, one.clean):.3f}"
            axes.plot(rates, np.interp(rates, fpr, tpr), style, label=label)  # tied scores make a slope
    axes.set(
        title="Memorized against clean prompts; AUROC in the legend",
        xlabel="false-positive rate",
        ylabel="true-positive rate",
        xscale="log",
        xlim=(lowest, 1),
        ylim=(0, 1.02),
    )
    axes.grid(alpha=0.3)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No artists with labels")  # where no detector has finite scores
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small")
    figure.savefig(path, dpi=120)
