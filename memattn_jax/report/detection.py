"""What a detecting run writes of each prompt: a row of its table, and a line on the terminal."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from memattn_jax.calibration import Calibration
from memattn_jax.detectors import Detection
from memattn_jax.detectors.attribution import attention_excess
from memattn_jax.report.results import LABEL, number
from memattn_jax.text import printable

if TYPE_CHECKING:
    from memattn_jax.prompts import Prompt
    from memattn_jax.tokenizer import Tokenizer

BLAMED = 3  # tokens that the terminal names
PER_TOKEN = ("attention", "attention_excess", "gradient")


def detection_schema(detectors: Iterable[str], explain: bool) -> pa.Schema:
    """Columns of a table of detections.

    row               number of the prompt, from 0
    prompt
    length            tokens, begin and end token counted
    (a detector)      its score; null where it is not finite
    verdict           "memorized" where a score lies over its threshold, else "clean"; null without thresholds
    over              names of the detectors whose score does
    tokens            with `explain`: the tokens as text, and of each its share of the attention, that share against
    attention …       clean prompts', and the gradient; see `Detection`
    error             why the prompt, or one of its scores, is missing; else null
    """
    fields = [pa.field("row", pa.int64()), pa.field("prompt", pa.string()), pa.field("length", pa.int32())]
    fields += [pa.field(name, pa.float32()) for name in detectors]
    fields += [pa.field("verdict", pa.string()), pa.field("over", pa.list_(pa.string()))]
    if explain:
        fields += [pa.field("tokens", pa.list_(pa.string()))]
        fields += [pa.field(name, pa.list_(pa.float32())) for name in PER_TOKEN]
    return pa.schema([*fields, pa.field("error", pa.string())])


def detection_rows(
    batch: Iterable[tuple[int, "Prompt"]],
    detection: Detection | None,
    calibration: Calibration | None,
    tokenizer: "Tokenizer",
) -> list[dict[str, Any]]:
    """Rows of a batch.

    Args:
      batch: numbers and prompts.
      detection: of the prompts that could be read, in their order, and perhaps more rows; None where none could.
      calibration: thresholds, or None.
      tokenizer: the model's.
    """
    over: dict[str, np.ndarray] = {}
    excess = None
    if calibration is not None and detection is not None:
        over = calibration.memorized(detection)
        if detection.attention is not None:
            excess = attention_excess(detection.attention, calibration.attention, detection.lengths)
    rows, place = [], 0
    for row, prompt in batch:
        if prompt.error is not None or detection is None:
            rows.append({"row": row, "prompt": prompt.text, "error": prompt.error})
            continue
        rows.append({"row": row, "prompt": prompt.text} | describe(detection, place, over, excess, tokenizer))
        place += 1
    return rows


def describe(
    detection: Detection, place: int, over: dict[str, np.ndarray], excess: np.ndarray | None, tokenizer: "Tokenizer"
) -> dict[str, Any]:
    """What one row of a detection says."""
    length = int(detection.lengths[place])
    scores = {name: number(score[place]) for name, score in detection.scores.items()}
    unscored = [name for name, score in scores.items() if score is None]
    above = [name for name, memorized in over.items() if memorized[place]]
    judged = [name for name in over if name not in unscored]
    row: dict[str, Any] = {
        "length": length,
        **scores,
        "verdict": ("memorized" if above else "clean") if judged else None,
        "over": above,
        "error": f"not finite: {', '.join(unscored)}" if unscored else None,
    }
    if detection.attention is not None:
        row["tokens"] = tokenizer.words(detection.input_ids[place, :length])
        for name, values in zip(PER_TOKEN, (detection.attention, excess, detection.gradients), strict=True):
            row[name] = None if values is None else [number(value) for value in values[place, :length]]
    return row


def tell(row: dict[str, Any], detectors: Iterable[str]) -> str:
    """One line: scores, an asterisk where one is over its threshold, the prompt, and the tokens to blame."""
    if "length" not in row:
        return f"not scored: {row['error']}"
    scores = "  ".join(
        f"{name} {'NaN' if row[name] is None else format(row[name], '.4f')}{'*' if name in row['over'] else ' '}"
        for name in detectors
    )
    line = f"{scores}  {printable(row['prompt'], LABEL)}"
    blamed = to_blame(row)
    return f"{line}  [{blamed}]" if blamed and row["over"] else line


def to_blame(row: dict[str, Any]) -> str:
    """The prompt tokens that take the most attention, against clean prompts where they are known."""
    values, unit = row.get("attention_excess"), "x"
    if values is None:
        values, unit = row.get("attention"), ""
    if values is None or None in values:
        return ""
    own = [(value, token) for value, token in zip(values[1:-1], row["tokens"][1:-1], strict=True)]
    return ", ".join(f"{token} {value:.2g}{unit}" for value, token in sorted(own, reverse=True)[:BLAMED])
