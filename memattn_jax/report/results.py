"""What a generating run writes: pictures, a line of JSON for each, and the entropy plot."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from memattn_jax import detectors
from memattn_jax.entropy import mean_over_sites, token_entropy
from memattn_jax.report.plots import plot_entropy

if TYPE_CHECKING:
    from memattn_jax.pipeline import Samples
    from memattn_jax.tokenizer import Tokenizer


def number(value: np.floating) -> float | None:
    """A float for JSON, which has no NaN."""
    return float(value) if np.isfinite(value) else None


class ResultWriter:
    """Writes rows as they come, so that an interrupted run keeps what it computed."""

    def __init__(self, out: Path, results: TextIO, settings: dict[str, Any], versions: dict[str, str]):
        self.out = out
        self.results = results
        self.shared = {"settings": settings, "versions": versions}
        self.labels: list[str] = []
        self.entropy: list[np.ndarray] = []  # [steps] a row

    def write(self, run: "Samples", count: int, tokenizer: "Tokenizer") -> Iterator[str]:
        """Writes the first `count` rows of a run; yields a line about each for the terminal."""
        mean = mean_over_sites(run.tokens)  # [steps, batch, tokens]
        entropy = np.asarray(token_entropy(mean))
        attention = np.asarray(mean.mean(axis=0))  # [batch, tokens]
        metric_e, metric_d = np.asarray(detectors.entropy_e(run)), np.asarray(detectors.entropy_d(run))
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
                "error": None,
                **self.shared,
            }
            if run.finite[row]:
                text = PngInfo()
                for key in ("prompt", "seed", "settings", "versions"):
                    value = result[key]
                    text.add_text(key, value if isinstance(value, str) else json.dumps(value))
                Image.fromarray(run.images[row]).save(self.out / result["file"], pnginfo=text)
                yield f"{result['file']}  E {result['E']:.4f}  D {result['D']:.4f}  {result['prompt']}"
            else:
                result |= {"file": None, "error": "latents hold NaN or infinity; no picture was written"}
                yield f"no picture: {result['error']}  {result['prompt']}"
            self.results.write(json.dumps(result, ensure_ascii=False) + "\n")
            self.labels.append(f"{result['prompt']} (seed {result['seed']})")
            self.entropy.append(entropy[:, row])
        self.results.flush()

    def plot(self) -> None:
        """Draws all rows written."""
        plot_entropy(self.out / "entropy.png", np.stack(self.entropy, axis=1), self.labels)
