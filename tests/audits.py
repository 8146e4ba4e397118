"""A small audit: its log, clean prompts and pictures, and how it is made of a model in memory."""

from pathlib import Path
from typing import Any

import micro
import pytest

from memattn_jax.commands import audit
from memattn_jax.commands.audit_options import Options

WORDS = ("a dog", "the old house", "two red cats", "a boat on a lake", "someone", "blue")


class KilledError(BaseException):
    """What a signal would do: nothing that runs afterwards is written."""


def write_inputs(folder: Path) -> None:
    """log.csv with an empty and a repeated prompt, clean.txt, the same as clean.csv, and four pictures."""
    prompts = [f"{word} {number}" for number in range(2) for word in WORDS]
    rows = [
        f"{prompt},{'even' if place % 2 == 0 else 'odd'}" for place, prompt in enumerate([*prompts, prompts[0], ""])
    ]
    clean = [f"{word} of {number}" for number in range(5) for word in WORDS]
    (folder / "log.csv").write_text("\n".join(["prompt,source", *rows]) + "\n")
    (folder / "clean.txt").write_text("\n".join(clean) + "\n")
    (folder / "clean.csv").write_text("\n".join(["number,caption", *(f"1,{text}" for text in clean)]) + "\n")
    micro.write_pictures(folder / "pictures", 4)


def audit_into(model: Any, inputs: Path, out: Path, **changed: Any) -> None:
    """Audits a loaded model; of the files that it would have been loaded from, clean.txt stands in."""
    options = {
        "model": "three matrices",
        "prompts": str(inputs / "log.csv"),
        "clean": str(inputs / "clean.txt"),
        "training_pictures": inputs / "pictures",
        "kind": "source",
        "mitigation": "attention_mask:mask=summary",
        "detectors": "noise_norm",
        "fpr": 0.4,
        "steps": 2,
        "images_per_prompt": 2,
        "sampled_prompts": 50,
        "batch_size": 4,
        "out": out,
    }
    chosen = Options(**options | changed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("memattn_jax.commands.audit_document.locate", lambda *_: inputs / "clean.txt")
        audit.audit_model(model, chosen, audit.read_sources(chosen), audit.load_proposals(chosen))
