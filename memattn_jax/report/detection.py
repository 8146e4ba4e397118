"""Rows of the detection table, and one line about each for the terminal."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from memattn_jax.detectors import Detection
from memattn_jax.detectors.calibration.attention_excess import CleanAttention, labels, listed, standing_out
from memattn_jax.detectors.calibration.verdicts import MEMORIZED, UNKNOWN, Rule
from memattn_jax.report.results import LABEL, number
from memattn_jax.text import printable

if TYPE_CHECKING:
    from memattn_jax.checkpoints.tokenizer import Tokenizer
    from memattn_jax.prompts import Prompt

SHOWN_TOKENS = 3  # on the terminal
PER_TOKEN = ("attention", "attention_excess", "gradient")


class Ground(NamedTuple):
    """What rows are computed from besides scores.

    Attributes:
      rule: for verdicts; None without a calibration.
      attention: of clean prompts; likewise.
      tokenizer: the model's.
      site: the cross-attention layer that `entropy_e` reads.
    """

    rule: Rule | None
    attention: CleanAttention | None
    tokenizer: "Tokenizer"
    site: str


def detection_schema(detectors: Iterable[str], explain: bool) -> pa.Schema:
    """Columns of a table of detections.

    row               number of the prompt, from 0
    prompt
    length            tokens, begin and end token counted
    (a detector)      its score; null where it is not finite
    p                 joint p-value of the scores against clean prompts, see `detectors/calibration/verdicts.py`; null
                      without a calibration
    verdict           "memorized" where p is at most --fpr, "unknown" where it is not and a score is missing or clean
                      prompts are too few, else "clean"; null without a calibration, and with --fdr, whose
                      verdicts are in _verdicts.parquet
    over              names of the detectors whose score alone makes the verdict "memorized"
    site              the cross-attention layer that entropy_e reads
    tokens            with `explain`: the tokens as text: <begin>, the prompt's own, <end>, and <padding ×N>, which is N
                      tokens listed as one
    attention         of each, its share of the first step's attention; the padding's is summed
    attention_excess  that share against the mean share in clean prompts; null without a calibration
    gradient          of each, see `Detection`; the padding's is the norm over all of it
    blamed            those of `tokens` that stand out, largest attention_excess first, see
                      `detectors/calibration/attention_excess.py`; null without a calibration
    error             why the prompt, or one of its scores, is missing; else null
    """
    fields = [pa.field("row", pa.int64()), pa.field("prompt", pa.string()), pa.field("length", pa.int32())]
    fields += [pa.field(name, pa.float32()) for name in detectors]
    fields += [pa.field("p", pa.float64()), pa.field("verdict", pa.string()), pa.field("over", pa.list_(pa.string()))]
    fields += [pa.field("site", pa.string())]
    if explain:
        fields += [pa.field("tokens", pa.list_(pa.string()))]
        fields += [pa.field(name, pa.list_(pa.float32())) for name in PER_TOKEN]
        fields += [pa.field("blamed", pa.list_(pa.string()))]
    return pa.schema([*fields, pa.field("error", pa.string())])


def detection_rows(
    batch: Iterable[tuple[int, "Prompt"]], detection: Detection | None, ground: Ground
) -> list[dict[str, Any]]:
    """Rows of a batch.

    Args:
      batch: numbers and prompts.
      detection: of the prompts that could be read, in their order, and perhaps more rows; None where none could.
      ground: rule, clean attention, tokenizer and site.
    """
    judged = [] if ground.rule is None or detection is None else ground.rule.judge(detection.scores)
    rows, place = [], 0
    for row, prompt in batch:
        if prompt.error is not None or detection is None:
            rows.append({"row": row, "prompt": prompt.text, "error": prompt.error})
            continue
        verdict = judged[place] if judged else {}
        rows.append({"row": row, "prompt": prompt.text} | describe(detection, place, ground) | verdict)
        place += 1
    return rows


def describe(detection: Detection, place: int, ground: Ground) -> dict[str, Any]:
    """The columns of one row of a detection, without its verdict."""
    scores = {name: number(score[place]) for name, score in detection.scores.items()}
    unscored = [name for name, score in scores.items() if score is None]
    row: dict[str, Any] = {
        "length": int(detection.lengths[place]),
        **scores,
        "p": None,
        "verdict": None,
        "over": None,
        "site": ground.site,
        "error": f"not finite: {', '.join(unscored)}" if unscored else None,
    }
    return row if detection.attention is None else row | explain(detection, place, ground)


def explain(detection: Detection, place: int, ground: Ground) -> dict[str, Any]:
    """The columns about tokens."""
    length, ids = int(detection.lengths[place]), detection.input_ids[place]
    tokens = labels(ground.tokenizer.words(ids[:length]), len(ids) - length)
    shares = listed(detection.attention[place], length)
    values: dict[str, Any] = {
        "attention": shares,
        "attention_excess": None,
        "gradient": np.sqrt(listed(np.square(detection.gradients[place]), length)),
    }
    blamed = None
    if ground.attention is not None:
        values["attention_excess"] = excess = ground.attention.excess(shares, length)
        blamed = [tokens[entry] for entry in ground.attention.stand_out(excess, length)]
    columns = {name: None if column is None else [number(value) for value in column] for name, column in values.items()}
    return {"tokens": tokens, **columns, "blamed": blamed}


def format_row(row: dict[str, Any], detectors: Iterable[str]) -> str:
    """One line: scores, with an asterisk over the threshold; p; the prompt; and the tokens that stand out."""
    if row["length"] is None:
        return f"not scored: {row['error']}"
    over = row["over"] or ()
    parts = [
        f"{name} {'NaN' if row[name] is None else format(row[name], '.4f')}{'*' if name in over else ' '}"
        for name in detectors
    ]
    if row["p"] is not None:
        parts.append(f"p {row['p']:.4f}")
    parts.append(printable(row["prompt"], LABEL))
    if row["verdict"] == MEMORIZED and isinstance(row.get("blamed"), list):
        parts.append(f"[{stands_out(row)}]")
    if row["verdict"] == UNKNOWN:
        parts.append(f"[{UNKNOWN}]")
    if row["error"] is not None:
        parts.append(row["error"])
    return "  ".join(parts)


def stands_out(row: dict[str, Any]) -> str:
    """The tokens with the most attention relative to clean prompts, each with that ratio."""
    tokens, excess = row["tokens"], row["attention_excess"]
    shown = standing_out(tokens, excess, row["blamed"])[:SHOWN_TOKENS]
    return ", ".join(f"{tokens[place]} {excess[place]:.2g}x" for place in shown) or "no token stands out"
