"""What a detecting run writes: a line of JSON and a line on the terminal for each prompt."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from memattn_jax.calibration import Calibration
from memattn_jax.detectors import Detection
from memattn_jax.detectors.attribution import attention_excess
from memattn_jax.report.results import LABEL, number, shorten

if TYPE_CHECKING:
    from memattn_jax.tokenizer import Tokenizer

BLAMED = 3  # tokens that the terminal names


class DetectionWriter:
    """Writes rows to results.jsonl as they come; the first ones replace an earlier run's."""

    def __init__(self, out: Path, tokenizer: "Tokenizer", settings: dict[str, Any], calibration: Calibration | None):
        self.path = out / "results.jsonl"
        self.tokenizer = tokenizer
        self.settings = settings
        self.calibration = calibration
        self.written = self.failed = 0
        self.memorized: dict[str, int] = {}  # prompts over each detector's threshold

    def write(self, detection: Detection) -> list[str]:
        """Writes a batch; returns a line about each prompt."""
        verdicts = {} if self.calibration is None else self.calibration.memorized(detection)
        excess = None
        if self.calibration is not None and detection.attention is not None:
            excess = attention_excess(detection.attention, self.calibration.attention, detection.lengths)
        lines = []
        with self.path.open("a" if self.written else "w", encoding="utf-8") as results:
            for row, prompt in enumerate(detection.prompts):
                result = self.result(detection, row, prompt, verdicts, excess)
                results.write(json.dumps(result, ensure_ascii=False) + "\n")
                lines.append(describe(result))
                self.failed += result["error"] is not None
                for name, verdict in verdicts.items():
                    self.memorized[name] = self.memorized.get(name, 0) + bool(verdict[row])
                self.written += 1
        return lines

    def result(
        self,
        detection: Detection,
        row: int,
        prompt: str,
        verdicts: dict[str, np.ndarray],
        excess: np.ndarray | None,
    ) -> dict[str, Any]:
        """What is known of one prompt, for JSON."""
        length = int(detection.lengths[row])

        def per_token(values: np.ndarray | None) -> list[float | None] | None:
            return None if values is None else [number(value) for value in values[row, :length]]

        scores = {name: number(score[row]) for name, score in detection.scores.items()}
        unscored = [name for name, score in scores.items() if score is None]
        return {
            "prompt": prompt,
            "scores": scores,
            "memorized": {name: bool(verdict[row]) for name, verdict in verdicts.items() if name not in unscored},
            "tokens": self.tokenizer.words(detection.input_ids[row, :length]),
            "attention": per_token(detection.attention),
            "attention_excess": per_token(excess),
            "gradient": per_token(detection.gradients),
            "error": f"not finite: {', '.join(unscored)}" if unscored else None,
            "settings": self.settings,
        }


def describe(result: dict[str, Any]) -> str:
    """One line: scores, an asterisk where one is over its threshold, the prompt, and the tokens to blame."""
    scores = "  ".join(
        f"{name} {'NaN' if score is None else format(score, '.4f')}{'*' if result['memorized'].get(name) else ' '}"
        for name, score in result["scores"].items()
    )
    line = f"{scores}  {shorten(result['prompt'], LABEL)}"
    blamed = to_blame(result)
    return f"{line}  [{blamed}]" if blamed and any(result["memorized"].values()) else line


def to_blame(result: dict[str, Any]) -> str:
    """The prompt tokens that take the most attention, against clean prompts where they are known."""
    values, unit = result["attention_excess"], "x"
    if values is None:
        values, unit = result["attention"], ""
    if values is None or None in values:
        return ""
    own = [(value, token) for value, token in zip(values[1:-1], result["tokens"][1:-1], strict=True)]
    return ", ".join(f"{token} {value:.2g}{unit}" for value, token in sorted(own, reverse=True)[:BLAMED])
