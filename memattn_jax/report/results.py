"""What a generating run writes: pictures, a line of JSON for each, and the entropy plot."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from memattn_jax import detectors
from memattn_jax.entropy import METRIC_E_SITE, mean_over_sites, token_entropy
from memattn_jax.report.plots import plot_entropy

if TYPE_CHECKING:
    from memattn_jax.pipeline import Samples
    from memattn_jax.tokenizer import Tokenizer


LABEL = 60  # characters of a prompt that a legend or a line on the terminal shows


def shorten(text: str, length: int) -> str:
    """The text, cut to a length with an ellipsis."""
    return text if len(text) <= length else text[: length - 1] + "…"


def number(value: np.floating) -> float | None:
    """A float for JSON, which has no NaN."""
    return float(value) if np.isfinite(value) else None


class ResultWriter:
    """Writes rows as they come, so that an interrupted run keeps what it computed.

    The first rows replace an earlier run's results.jsonl and pictures; until then they are untouched.
    """

    def __init__(self, out: Path, versions: dict[str, str]):
        self.out = out
        self.versions = versions
        self.labels: list[str] = []
        self.entropy: list[np.ndarray] = []  # [steps] a row

    def write(self, run: "Samples", count: int, tokenizer: "Tokenizer", settings: dict[str, Any]) -> list[str]:
        """Writes the first `count` rows of a run, made with these settings; returns a line about each."""
        mean = mean_over_sites(run.tokens)  # [steps, batch, tokens]
        entropy = np.asarray(token_entropy(mean))
        attention = np.asarray(mean.mean(axis=0))  # [batch, tokens]
        metric_d = np.asarray(detectors.entropy_d(run))
        metric_e = np.full_like(metric_d, np.nan)
        if len(run.tokens) > METRIC_E_SITE:  # a small model may lack the site of the paper
            metric_e = np.asarray(detectors.entropy_e(run))
        if not self.labels:
            for old in self.out.glob("[0-9][0-9][0-9][0-9][0-9].png"):
                old.unlink()
        lines = []
        with (self.out / "results.jsonl").open("a" if self.labels else "w", encoding="utf-8") as results:
            for row in range(count):
                length = int(run.lengths[row])
                result: dict[str, Any] = {
                    "prompt": run.prompts[row],
                    "seed": run.seeds[row],
                    "file": f"{len(self.labels):05d}.png",
                    "E": number(metric_e[row]),
                    "D": number(metric_d[row]),
                    "tokens": tokenizer.words(run.input_ids[row, :length]),
                    "attention": [number(value) for value in attention[row, :length]],
                    "guard_score": None if run.guard_scores is None else number(run.guard_scores[row]),
                    "mitigated": None if run.mitigated is None else bool(run.mitigated[row]),
                    "error": None,
                    "settings": settings,
                    "versions": self.versions,
                }
                label = shorten(run.prompts[row], LABEL)
                if run.finite[row]:
                    self.save_picture(run.images[row], result)
                    note = "  mitigated by the guard" if result["mitigated"] else ""
                    lines.append(f"{result['file']}  E {metric_e[row]:.4f}  D {metric_d[row]:.4f}  {label}{note}")
                else:
                    result |= {"file": None, "error": "latents hold NaN or infinity; no picture was written"}
                    lines.append(f"no picture: {result['error']}  {label}")
                results.write(json.dumps(result, ensure_ascii=False) + "\n")
                self.labels.append(f"{label} (seed {run.seeds[row]})")
                self.entropy.append(entropy[:, row])
        return lines

    def save_picture(self, image: np.ndarray, result: dict[str, Any]) -> None:
        """A PNG whose text holds what made it."""
        text = PngInfo()
        for key in ("prompt", "seed", "settings", "versions"):
            value = result[key]
            text.add_text(key, value if isinstance(value, str) else json.dumps(value))
        Image.fromarray(image).save(self.out / result["file"], pnginfo=text)

    def plot(self) -> None:
        """Draws all rows written."""
        plot_entropy(self.out / "entropy.png", np.stack(self.entropy, axis=1), self.labels)
