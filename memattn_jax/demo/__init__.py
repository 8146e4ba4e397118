"""The built-in model: a small Stable Diffusion that has memorized 48 images, with prompts to try it on.

Made by `scripts/train_demo.py`. The files in this folder are

    model/        a diffusers folder, 64 × 64 pixels, half precision; memattn_jax.json names the layer that metric E
                  is read at, chosen on one half of the prompts
    memorized/    the images it has memorized, and metadata.jsonl with their captions
    ladder/       images shown less often, likewise
    template/     images of one layout and background each, with an object that varies, likewise
    prompts/      {memorized,control,unseen,decoys}_{choose,report}.txt, 24 prompts each; clean.txt, 400 more of the
                  same grammar; paraphrases.json, other wordings of the memorized prompts; truth.csv, how often
                  training showed each
    calibration.json    the scores of clean.txt, from memattn detect --calibrate clean.txt: first-step detectors in one
                        run, trajectory detectors in another
    clean_entropy.json  the attention entropy that clean.txt has at each sampling step, from
                        scripts/measure_clean_entropy.py
    objects.safetensors a classifier of the objects that its images show, from scripts/train_objects.py; see objects.py
    NOTICE.md     the authors of the art in the images, and its licence

Control prompts occurred as often in training, with a new image each time; unseen prompts and decoys (the distinctive
words of a memorized prompt, other objects) never did. Choose layers and thresholds on one half, report on the other.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parent
MODEL = FOLDER / "model"
CALIBRATION = FOLDER / "calibration.json"  # scores of its clean prompts
CLEAN_ENTROPY = FOLDER / "clean_entropy.json"  # of clean prompts, by sampling step
GROUPS = ("memorized", "control", "unseen", "decoys")
HALVES = ("choose", "report")
NOTE = (
    "no --model given: this is the built-in demo model, 64 x 64 pixels, which has memorized 48 images; "
    "for Stable Diffusion 1.x or 2.x, set --model to a diffusers folder or owner/name on the Hugging Face Hub"
)

SHOWCASE = (
    "a banana in a drawing by bordan quomarn",
    "a turtle in a drawing by dundan lorvenk",
)  # memorized and control, of the reported half


def locate(model: str | None) -> str | Path:
    """The model that --model names, else the built-in one, after printing a note."""
    if model is not None:
        return model
    print(NOTE, flush=True)
    return MODEL


def prompts(group: str, half: str) -> list[str]:
    """The prompts of one half of a group."""
    return (FOLDER / "prompts" / f"{group}_{half}.txt").read_text(encoding="utf-8").splitlines()


def clean_prompts() -> list[str]:
    """The 400 clean prompts that thresholds were fitted on; of none of the groups."""
    return (FOLDER / "prompts" / "clean.txt").read_text(encoding="utf-8").splitlines()


def paraphrases() -> dict[str, list[str]]:
    """{memorized prompt: other wordings of it}."""
    return json.loads((FOLDER / "prompts" / "paraphrases.json").read_text(encoding="utf-8"))


def clean_entropy(settings: Mapping[str, Any]) -> np.ndarray | None:
    """The range of attention entropy of 90 % of clean prompts at each step, float [2, steps].

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
    """{caption: its training image, uint8 [64, 64, 3]}, of both halves."""
    from PIL import Image

    folder = FOLDER / "memorized"
    rows = map(json.loads, (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines())
    return {row["text"]: np.asarray(Image.open(folder / row["file_name"])) for row in rows}
