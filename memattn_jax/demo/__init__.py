"""The built-in model: a small Stable Diffusion that has memorized 48 pictures, and what it can be tried with.

`scripts/train_demo.py` made it. Beside this file lie

    model/        a diffusers folder, 64 × 64 pictures, half precision; memattn_jax.json names the layer that metric E
                  is read at, chosen on one half of the prompts
    memorized/    the pictures it has memorized, and metadata.jsonl with their captions
    prompts/      {memorized,control,unseen,decoys}_{choose,report}.txt, 24 prompts each; clean.txt, 400 more of the
                  same grammar
    calibration.json    what clean.txt scores, from python -m memattn_jax.detect --calibrate clean.txt --detectors
                        entropy_e,noise_norm,sharpness,anisotropy,hessian_difference
    clean_entropy.json  the attention entropy that clean.txt has at each sampling step, from
                        scripts/measure_clean_entropy.py
    NOTICE.md     whose art the pictures hold, and its licence

Control prompts came as often in training, with a new picture each time; unseen prompts and decoys (the distinctive
words of a memorized prompt, other objects) never did. Choose layers and thresholds on one half, report on the other.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parent
MODEL = FOLDER / "model"
CALIBRATION = FOLDER / "calibration.json"  # what its clean prompts score
CLEAN_ENTROPY = FOLDER / "clean_entropy.json"  # of clean prompts, by sampling step
GROUPS = ("memorized", "control", "unseen", "decoys")
HALVES = ("choose", "report")
NOTE = (
    "no --model given: this is the built-in demo model, 64 x 64 pixels, which has memorized 48 pictures; "
    "for Stable Diffusion 1.x or 2.x give --model a diffusers folder or owner/name on the hub"
)

SHOWCASE = (
    "a penguin for elkrin jasdan",
    "a strawberry for zanfir solmok",
)  # memorized and control, of the reported half


def locate(model: str | None) -> str | Path:
    """What a command's --model names; the built-in model, after a line that says so, where it names nothing."""
    if model is not None:
        return model
    print(NOTE, flush=True)
    return MODEL


def prompts(group: str, half: str) -> list[str]:
    """The prompts of one half of a group."""
    return (FOLDER / "prompts" / f"{group}_{half}.txt").read_text(encoding="utf-8").splitlines()


def clean_entropy(settings: Mapping[str, Any]) -> np.ndarray | None:
    """Between which values the attention entropy of 90 % of clean prompts lies at each step, float [2, steps].

    Args:
      settings: of a run, as `generate` writes them; a mitigation is not looked at.

    Returns:
      None for another model or other settings than those that were measured.
    """
    measured = json.loads(CLEAN_ENTROPY.read_text(encoding="utf-8"))
    if any(settings[name] != value for name, value in measured["settings"].items()):
        return None
    return np.array([measured["quantiles"][quantile] for quantile in ("0.05", "0.95")])


def memorized_pictures() -> dict[str, np.ndarray]:
    """{caption: the picture that it always came with, uint8 [64, 64, 3]}, of both halves."""
    from PIL import Image

    folder = FOLDER / "memorized"
    rows = map(json.loads, (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines())
    return {row["text"]: np.asarray(Image.open(folder / row["file_name"])) for row in rows}
