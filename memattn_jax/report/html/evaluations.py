"""Pages about evaluations of detectors and of mitigations, from the JSON that `evaluate` writes."""

import base64
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from memattn_jax import __version__
from memattn_jax.report.html.pages import page
from memattn_jax.report.html.plots import Axis
from memattn_jax.report.html.wording import number
from memattn_jax.report.html.writer import NAME
from memattn_jax.report.mitigations import COLUMNS
from memattn_jax.text import counted

FALSE_POSITIVES = ("0.01", "0.05")  # rates whose true-positive rates are shown


def detector_rows(content: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A line for each detector: AUROC with its interval, and other columns as text."""
    for name, entry in content["detectors"].items():
        others = {f"TPR at {100 * float(rate):g} % FPR": number(entry["tpr"][rate]) for rate in FALSE_POSITIVES}
        others |= {"forwards": number(entry["forwards_per_prompt"]), "seconds": number(entry["seconds_per_prompt"])}
        yield {"name": name, "dot": dot(entry, "auroc"), "others": others}


def mitigation_rows(content: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A line for each mitigation: the share of reproduced images with its interval, and other columns as text."""
    for name, entry in content["mitigations"].items():
        others = {heading: number(entry.get(key)) for heading, key in COLUMNS.items() if key != "reproduced"}
        yield {"name": name, "dot": dot(entry, "reproduced"), "others": others}


def dot(entry: Mapping[str, Any], name: str) -> dict[str, float | None]:
    """A share and its interval, None where they are not finite."""
    values = {"rate": entry[name], "low": entry[f"{name}_low"], "high": entry[f"{name}_high"]}
    return {key: None if value is None or math.isnan(value) else value for key, value in values.items()}


def write_evaluation_page(out: Path) -> str:
    """Writes report.html about the evaluation of detectors in a folder; returns its name."""
    content = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))
    return write(
        out,
        list(detector_rows(content)),
        title="Detectors",
        model=content["model"],
        sentence=f"How well each detector separates {content['memorized']} memorized from {content['clean']} clean "
        "prompts.",
        note="AUROC is 1 where every memorized prompt scores above every clean one, and 0.5 by chance. TPR is the "
        "share of memorized prompts found at a false-positive rate. text_baseline reads characters alone: where it "
        "separates the prompts, they differ in kind.",
        measure="AUROC",
        picture=("roc.png", "ROC curves of all detectors; their AUROC is in the table"),
        about={key: content[key] for key in ("fingerprint", "settings", "versions", "nan")},
    )


def write_mitigations_page(out: Path) -> str:
    """Writes report.html about the evaluation of mitigations in a folder; returns its name."""
    content = json.loads((out / "mitigations.json").read_text(encoding="utf-8"))
    about = {key: value for key, value in content.items() if key != "mitigations"}
    return write(
        out,
        list(mitigation_rows(content)),
        title="Mitigations",
        model=content["model"],
        sentence=f"What each mitigation does to {content['memorized']} memorized and {content['clean']} clean prompts, "
        f"{counted(content['seeds'], 'seed')} each.",
        note=f"Reproduced: {content['measure']}, 0.9 or more, with {content['reference']}. Less is better; change and "
        "distance of clean prompts should be small too.",
        measure="reproduced",
        picture=("mitigations.png", "Images of the first memorized prompts, a row for each mitigation"),
        about=about,
    )


def write(out: Path, rows: list[dict[str, Any]], *, picture: tuple[str, str], **context: Any) -> str:
    """Writes the page; a line whose measure is not finite has no dot."""
    name, alt = picture
    source = "data:image/png;base64," + base64.b64encode((out / name).read_bytes()).decode()
    image = {"source": source, "alt": alt}
    pieces = page("evaluation.html", None, version=__version__, rows=rows, scale=Axis(1.0), image=image, **context)
    (out / NAME).write_text("".join(pieces), encoding="utf-8")
    return NAME
