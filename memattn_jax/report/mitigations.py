"""What each mitigation does: mitigations.json, a table in Markdown and Parquet, and a picture."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from memattn_jax.report.figures.rendering import as_label

SHOWN = 8  # prompts in the picture
WIDTH = 120  # of lines
COLUMNS = {  # of the Markdown table: heading, and the entry's key
    "reproduced": "reproduced",
    "correlation": "correlation",
    "agreement": "agreement",
    "fidelity": "fidelity",
    "fidelity, clean": "fidelity_clean",
    "change, clean": "change_clean",
    "distance, clean": "frechet_clean",
    "forwards": "forwards",
    "seconds": "seconds",
}


def write_mitigations(
    out: Path,
    entries: Mapping[str, Mapping[str, Any]],
    shown: Mapping[str, np.ndarray],
    prompts: Sequence[str],
    about: Mapping[str, Any],
) -> str:
    """Writes the files, and returns the table.

    Args:
      out: the folder.
      entries: by mitigation, from `evaluation.mitigated.describe`.
      shown: rows of the picture by name, uint8 [prompts, height, width, 3] each.
      prompts: the memorized ones.
      about: model, measure, reference, settings and versions.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    content = {"mitigations": entries, **about}
    text = json.dumps(content, indent=1, ensure_ascii=False, default=float)
    (out / "mitigations.json").write_text(text + "\n", encoding="utf-8")
    rows = [
        {"mitigation": name, **{key: plain(value) for key, value in entry.items()}} for name, entry in entries.items()
    ]
    pq.write_table(pa.Table.from_pylist(rows), out / "mitigations.parquet")
    table = markdown(entries, about)
    (out / "mitigations.md").write_text(table, encoding="utf-8")
    draw(out / "mitigations.png", shown, prompts)
    return table


def plain(value: Any) -> Any:
    """A value for a table: nested ones as JSON."""
    return json.dumps(value, default=float) if isinstance(value, dict) else value


def markdown(entries: Mapping[str, Mapping[str, Any]], about: Mapping[str, Any]) -> str:
    """The table, and lines that say what its numbers are."""

    def cell(entry: Mapping[str, Any], key: str) -> str:
        value = entry.get(key)
        if value is None or value != value:
            return "–"
        if key == "reproduced":
            low, high = (100 * entry[f"reproduced_{end}"] for end in ("low", "high"))
            return f"{100 * value:.1f} % ({low:.1f} to {high:.1f})"
        if key in ("fidelity", "fidelity_clean"):
            return f"{100 * value:.1f} %" if "objects" in str(about["fidelity_by"]) else f"{value:.3f}"
        return f"{value:.{1 if key == 'forwards' else 3}f}"

    similarities = dict.fromkeys(name for entry in entries.values() for name in entry.get("similarity", {}))
    attacked = any("adversarial" in entry for entry in entries.values())
    header = ["mitigation", *COLUMNS, *(f"reproduced by {name}" for name in similarities)]
    header += ["adversarial", "control"] * attacked
    lines = [header, ["---"] * len(header)]
    for name, entry in entries.items():
        by = [cell(entry["similarity"][each], "reproduced") for each in similarities]
        found = entry.get("adversarial", {})
        both = [found[key] for key in ("retriggered", "control")] if attacked else []
        again = ["–" if share is None else f"{100 * share:.0f} %" for share in both]
        lines.append([f"`{name}`", *(cell(entry, key) for key in COLUMNS.values()), *by, *again])
    text = "".join("| " + " | ".join(line) + " |\n" for line in lines)
    notes = [
        f"Reproduced: {about['measure']}, 0.9 or more, with {about['reference']}.",
        f"{about['memorized']} memorized and {about['clean']} clean prompts, {about['seeds']} seeds each.",
        "Intervals of 95 % over prompts (Clopper and Pearson).",
    ]
    if attacked:
        notes.append("Adversarial: share returned by optimised embeddings; control: of the same images mirrored.")
    if about["fidelity_by"]:
        notes.append(f"Fidelity: {about['fidelity_by']}.")
    return f"{text}\n{fill(' '.join(notes), WIDTH)}\n"


def draw(path: Path, shown: Mapping[str, np.ndarray], prompts: Sequence[str]) -> None:
    """A row of images for each mitigation, one seed of the first memorized prompts, with its name."""
    count = min(SHOWN, len(prompts))
    figure = Figure(figsize=(1.1 * count + 2.6, 1.1 * len(shown) + 0.5), layout="constrained")
    grid = figure.subplots(len(shown), count, squeeze=False)
    for axes, (name, images) in zip(grid, shown.items(), strict=True):
        for column, image in zip(axes, images[:count], strict=True):
            column.imshow(image)
            column.set_xticks([])
            column.set_yticks([])
        axes[0].set_ylabel(name.replace(":", "\n"), rotation=0, ha="right", va="center", fontsize=7)
    for column, prompt in zip(grid[0], prompts[:count], strict=True):
        column.set_title(as_label(prompt, 24), fontsize=6)
    figure.savefig(path, dpi=150)
