"""Pages of `detect`, `generate` and `evaluate` about a few made-up rows."""

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from audit_example import PROMPTS
from PIL import Image

from memattn_jax.detectors.calibration.verdicts import Joint, Rule
from memattn_jax.report.html import evaluations, runs
from memattn_jax.report.mitigations import COLUMNS
from memattn_jax.storage import Store

DETECTORS = ("entropy_e", "noise_norm")


def table(folder: Path, rows: list[dict[str, Any]]) -> Any:
    """What pages read of a `ShardedTable`."""
    return SimpleNamespace(
        store=Store(folder),
        jobs=len(rows),
        shard_rows=len(PROMPTS),
        rows=lambda columns=None: ({name: row[name] for name in columns or row} for row in rows),
        load=lambda shard, numbers: [rows[number] for number in numbers],
    )


def detection_row(row: int, explained: bool) -> dict[str, Any]:
    """Of `detect`; every third prompt is flagged, and the last one has no score."""
    failed, flagged = row == len(PROMPTS) - 1, row % 3 == 0
    tokens = {"tokens": ["<begin>", "a", "a", "<end>"], "attention": [0.4, 0.2, 0.1, 0.3]}
    tokens |= {"attention_excess": [1.0, 4.0, 2.0, None], "blamed": ["a"], "gradient": [1.0, 2.0, 1.0, 3.0]}
    judged = {"p": None, "verdict": None, "over": None}
    if not failed:
        judged = {"p": 0.001 if flagged else 0.5, "verdict": "memorized" if flagged else "clean", "over": []}
    own = {"row": row, "prompt": PROMPTS[row], "error": "cannot be read" if failed else None, "length": 3, "cut": False}
    scores = dict.fromkeys(DETECTORS, None if failed else row / 2)
    return own | scores | judged | (tokens if explained and not failed else {})


def write_detection(folder: Path, *, calibrated: bool = True, explained: bool = True) -> Path:
    """The page of `detect`."""
    rows = [detection_row(row, explained) for row in range(len(PROMPTS))]
    if not calibrated:
        rows = [row | {"p": None, "verdict": None, "over": None} for row in rows]
    clean = {name: np.linspace(0, 1, 400) for name in DETECTORS}
    rule = Rule(Joint.fit(clean), fpr=0.01) if calibrated else None
    judged = runs.Judged(rule, 0.01 if calibrated else None, list)
    runs.write_detection_page(table(folder, rows), DETECTORS, judged, {"model": "m<odel>", "steps": 50})
    return folder / "report.html"


def write_images(folder: Path) -> Path:
    """The page of `generate`: a picture for each prompt but the last."""
    rows: list[dict[str, Any]] = []
    files = table(folder, rows)
    for row, prompt in enumerate(PROMPTS):
        made = row < len(PROMPTS) - 1
        if made:
            sink = io.BytesIO()
            Image.fromarray(np.full((8, 8, 3), 20 * row, np.uint8)).save(sink, "PNG")
            files.store.write(f"{row:05d}.png", sink.getvalue())
        own = {"row": row, "prompt": prompt, "seed": row, "file": f"{row:05d}.png" if made else None}
        own |= {"E": 0.5 if made else None, "D": 1.5 if made else None, "guard_score": 0.1 * row if made else None}
        own |= {"tokens": ["<begin>", "x"], "attention": [0.9, 0.1], "mitigated": row % 2 == 0 if made else None}
        rows.append(own | {"error": None if made else "not finite"})
    files.jobs = len(rows)
    runs.write_images_page(files, len(rows) - 1, {"model": "model", "steps": 50}, 0.3)
    return folder / "report.html"


def write_evaluations(folder: Path) -> list[Path]:
    """The pages of `evaluate`, of detectors and of mitigations."""
    picture = np.zeros((4, 4, 3), np.uint8)
    share = {"reproduced": 0.25, "reproduced_low": 0.1, "reproduced_high": 0.45}
    entry = dict.fromkeys(COLUMNS.values()) | share
    auroc = {"auroc": 0.9, "auroc_low": 0.8, "auroc_high": 0.95, "tpr": {"0.01": 0.5, "0.05": None}}
    none = dict.fromkeys(("auroc", "auroc_low", "auroc_high")) | {"tpr": {"0.01": None, "0.05": None}}
    cost = {"forwards_per_prompt": 1.0, "seconds_per_prompt": 0.2}
    about = {"model": "model", "memorized": 8, "clean": 9, "fingerprint": "0", "settings": {}, "versions": {}, "nan": 0}
    detectors = {"detectors": {"entropy_e": auroc | cost, "noise_norm": none | cost}}
    about_mitigations = {"seeds": 1, "measure": "correlation", "reference": "the training image"}
    contents = {"evaluation": detectors | about, "mitigations": {"mitigations": {"none": entry}} | about}
    contents["mitigations"] |= about_mitigations
    pages = []
    for name, image, write in (
        ("evaluation", "roc", evaluations.write_evaluation_page),
        ("mitigations", "mitigations", evaluations.write_mitigations_page),
    ):
        out = folder / name
        out.mkdir()
        (out / f"{name}.json").write_text(json.dumps(contents[name]), encoding="utf-8")
        Image.fromarray(picture).save(out / f"{image}.png")
        pages.append(out / write(out))
    return pages
