"""What a generation run writes: for each image a PNG and a table row, and at the end the entropy plot."""

import io
import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import pyarrow as pa
from jax import Array
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from memattn_jax import entropy
from memattn_jax.report.plots import plot_entropy
from memattn_jax.runs.shards import row_name
from memattn_jax.text import printable

if TYPE_CHECKING:
    from memattn_jax.checkpoints.tokenizer import Tokenizer
    from memattn_jax.pipeline import Samples
    from memattn_jax.runs.table import ShardedTable
    from memattn_jax.storage import Store


LABEL = 60  # characters of a prompt in a legend or a line on the terminal
JSON_ROWS = 10_000  # at most, of a table that is copied to JSON lines
PLOTTED = 500  # images in the entropy plot
AS_JSON = ("settings", "versions")  # columns that hold JSON

IMAGE_SCHEMA = pa.schema(
    [
        pa.field("row", pa.int64()),  # number of the image, from 0
        pa.field("prompt", pa.string()),
        pa.field("seed", pa.int64()),
        pa.field("file", pa.string()),
        pa.field("length", pa.int32()),  # tokens, begin and end token counted
        pa.field("E", pa.float32()),  # metrics of Ren et al.; larger, more likely memorized
        pa.field("D", pa.float32()),
        pa.field("guard_score", pa.float32()),
        pa.field("mitigated", pa.bool_()),  # by --mitigation or the guard; null where there is no image
        pa.field("tokens", pa.list_(pa.string())),
        pa.field("attention", pa.list_(pa.float32())),  # of each token, mean over steps, layers and heads
        pa.field("entropy", pa.list_(pa.float32())),  # of each step's attention, in nats
        pa.field("error", pa.string()),  # why there is no image, or no score of the guard's; else null
        pa.field("settings", pa.string()),
        pa.field("versions", pa.string()),
    ]
)


NO_IMAGE = "latents or image contain NaN or infinity; no image was written"
GUARD_BLIND = "the guard's score is not finite; mitigated as if memorized"


def number(value: np.floating) -> float | None:
    """A float for a table; None where it is not finite."""
    return float(value) if np.isfinite(value) else None


@dataclass(frozen=True)
class Measured:
    """A sampled batch and statistics of its attention; see `measure`.

    Attributes:
      run: the batch.
      attention: float32 [batch, tokens], mean over steps, layers and heads.
      entropy: float32 [steps, batch], in nats.
      metric_e: float32 [batch], at `Samples.entropy_site`.
      metric_d: float32 [batch].
    """

    run: "Samples"
    attention: Any
    entropy: Any
    metric_e: Any
    metric_d: Any

    def fetch(self) -> "Measured":
        """The same in the host's memory, once the device is done."""
        arrays = {"attention": self.attention, "entropy": self.entropy, "e": self.metric_e, "d": self.metric_d}
        host: dict[str, Any] = jax.device_get(arrays)
        return replace(
            self,
            run=self.run.fetch(),
            attention=host["attention"],
            entropy=host["entropy"],
            metric_e=host["e"],
            metric_d=host["d"],
        )


@partial(jax.jit, static_argnames="site")
def summarize(taps: tuple[Array, ...], lengths: Array, site: int) -> tuple[Array, Array, Array, Array]:
    """The arrays of `Measured`, from the token means of each site in forward order and the index of metric E's site.

    One program, and taps in a tuple: operations on a CPU array that is still being computed would each wait for it, and
    `jax.jit` would sort a dict by name.
    """
    attention = dict(zip(map(str, range(len(taps))), taps, strict=True))
    mean = entropy.mean_over_sites(attention)  # [steps, batch, heads, tokens] of each site → [steps, batch, tokens]
    metric_d = entropy.entropy_and_movement(mean, lengths)
    metric_e = entropy.metric_e(attention, str(site))
    return mean.mean(axis=0), entropy.token_entropy(mean), metric_e, metric_d


def measure(run: "Samples") -> Measured:
    """Starts computing a batch's statistics on the device, which may still be sampling it."""
    site = list(run.tokens).index(run.entropy_site)
    return Measured(run, *summarize(tuple(run.tokens.values()), run.lengths, site))


def image_row(
    row: int,
    batch: Measured,
    place: int,
    tokenizer: "Tokenizer",
    settings: Mapping[str, Any],
    versions: Mapping[str, str],
) -> dict[str, Any]:
    """The table row of one image of a batch, made with these settings."""
    run, length = batch.run, int(batch.run.lengths[place])
    finite = bool(run.finite[place])
    unseen = run.guard_scores is not None and not np.isfinite(run.guard_scores[place])
    return {
        "row": row,
        "prompt": run.prompts[place],
        "seed": run.seeds[place],
        "file": row_name(row, "png") if finite else None,
        "length": length,
        "E": number(batch.metric_e[place]),
        "D": number(batch.metric_d[place]),
        "guard_score": None if run.guard_scores is None else number(run.guard_scores[place]),
        "mitigated": settings["mitigation"] != "none" if run.mitigated is None else bool(run.mitigated[place]),
        "tokens": tokenizer.words(run.input_ids[place, :length]),
        "attention": [number(value) for value in batch.attention[place, :length]],
        "entropy": [number(value) for value in batch.entropy[:, place]],
        "error": NO_IMAGE if not finite else GUARD_BLIND if unseen else None,
        "settings": json.dumps(settings),
        "versions": json.dumps(versions),
    }


def png(image: np.ndarray, row: Mapping[str, Any]) -> bytes:
    """Encodes an image as a PNG, with prompt, seed, settings and versions in its text."""
    text = PngInfo()
    for key in ("prompt", "seed", "settings", "versions"):
        text.add_text(key, str(row[key]))
    sink = io.BytesIO()
    Image.fromarray(image).save(sink, format="PNG", pnginfo=text)
    return sink.getvalue()


def format_row(row: Mapping[str, Any]) -> str:
    """One line about an image."""
    label = printable(row["prompt"], LABEL)
    if row.get("file") is None:
        return f"no image: {row['error']}  {label}".rstrip()
    e, d = ("–" if row[name] is None else f"{row[name]:.4f}" for name in "ED")
    by_guard = " by the guard" if row["guard_score"] is not None else ""
    note = f"  (mitigated{by_guard})" if row["mitigated"] else ""
    if row["error"] is not None:
        note = f"  ({row['error']})"
    return f"{row['file']}  E {e}  D {d}  {label}{note}"


def plot_rows(store: "Store", rows: Iterable[Mapping[str, Any]], band: np.ndarray | None) -> None:
    """Draws the entropy of the first images of a table as entropy.png, beside the `band` of `plot_entropy`."""
    drawn = list(islice((row for row in rows if row["entropy"] is not None), PLOTTED))
    if not drawn:
        return
    mitigated = np.array([bool(row["mitigated"]) for row in drawn])
    made = [f"seed {row['seed']}{', mitigated' if row['mitigated'] else ''}" for row in drawn]
    labels = [
        f"{row['row']:05d}  {printable(row['prompt'], LABEL)}  ({how})" for row, how in zip(drawn, made, strict=True)
    ]
    sink = io.BytesIO()
    plot_entropy(sink, np.array([row["entropy"] for row in drawn], np.float32).T, labels, mitigated, band)
    store.write("entropy.png", sink.getvalue())


def write_json_lines(
    table: "ShardedTable", rows: int, settle: Callable[[list[dict[str, Any]]], list[dict[str, Any]]] = list
) -> bool:
    """Copies a table of few rows to results.jsonl, one line per row; returns whether it did.

    Of many rows there is no copy, and several processes, none of which has all rows, make none and no report: what an
    earlier run wrote would be out of date, and is removed.

    Args:
      table: finished by this process.
      rows: how many it has.
      settle: maps the rows to those that are written.
    """
    name = "results.jsonl"
    alone = table.processes == 1
    if rows > JSON_ROWS or not alone:
        for old in {name} if alone else {name, "report.html"}:
            with suppress(FileNotFoundError):  # there is none, or another process was quicker
                table.store.remove(old)
        return False
    lines = []
    for row in settle(list(table.rows())):
        decoded = {column: json.loads(row[column]) for column in AS_JSON if row.get(column) is not None}
        lines.append(json.dumps(row | decoded, ensure_ascii=False) + "\n")
    table.store.write(name, "".join(lines).encode())
    return True
