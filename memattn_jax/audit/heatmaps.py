"""Where tokens of the flagged prompts look, over the picture: those that stand out, and some others beside them."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from memattn_jax.audit.sampling import Camera, Shot
from memattn_jax.detectors.calibration.attention_excess import standing_out
from memattn_jax.report.heatmaps import encode_png, overlay
from memattn_jax.runs.run import fill_up
from memattn_jax.sharding.placement import rows_multiple
from memattn_jax.storage import Store

BLAMED, OTHERS = 4, 2  # tokens of a prompt


def shown_tokens(row: Mapping[str, Any]) -> list[int]:
    """Places in `tokens` of those that stand out, most attention against clean prompts first, and of some others.

    Args:
      row: of the detection table.
    """
    tokens, attention = row["tokens"], [value or 0.0 for value in row["attention"]]
    excess = row["attention_excess"] or attention
    blamed = standing_out(tokens, excess, row["blamed"] or ())[:BLAMED]
    words = [place for place in range(1, row["length"] - 1) if place not in blamed]
    words.sort(key=lambda place: -(excess[place] or 0.0))  # the first word has most attention in any prompt
    return blamed + words[:OTHERS]


def heatmap_name(row: int, token: int) -> str:
    """File name of a heatmap."""
    return f"{row:06d}-{token:02d}.png"


def draw_heatmaps(
    camera: Camera, rows: Sequence[Mapping[str, Any]], seed: int, heatmaps: Store
) -> dict[int, list[dict[str, Any]]]:
    """Samples each prompt once with its attention, and writes its heatmaps, unless they are there already.

    Args:
      camera: how images were sampled.
      rows: of the detection table.
      seed: of the images.
      heatmaps: receives the files.

    Returns:
      {row: entries of items.jsonl}; none of an image that is not finite.
    """
    there, entries = set(heatmaps.names()), {}
    for batch in in_batches(rows, camera.size):
        names = {heatmap_name(row["row"], token) for row in batch for token in shown_tokens(row)}
        finite = [True] * len(batch)
        if names - there:
            finite = write_batch(camera, batch, seed, heatmaps)
        for row, made in zip(batch, finite, strict=True):
            files = [(token, heatmap_name(row["row"], token)) for token in shown_tokens(row)]
            entries[row["row"]] = [{"token": token, "file": f"heatmaps/{name}"} for token, name in files if made]
    return entries


def in_batches(rows: Sequence[Mapping[str, Any]], size: int) -> Iterator[list[Mapping[str, Any]]]:
    """Rows in lists of one size but the last."""
    remaining = iter(rows)
    while batch := list(islice(remaining, size)):
        yield batch


def write_batch(camera: Camera, batch: Sequence[Mapping[str, Any]], seed: int, heatmaps: Store) -> list[bool]:
    """Samples and writes a batch; returns which images are finite."""
    shots = fill_up(
        [Shot(row["prompt"], seed, row["row"]) for row in batch], rows_multiple(camera.size, camera.sd.mesh)
    )
    texts = [shot.text for shot in shots]
    run = camera.sd.sample(texts, seeds=[seed] * len(texts), taps="heatmaps", **camera.arguments)
    chosen = [shown_tokens(row) for row in batch]
    for turn in range(max(map(len, chosen), default=0)):
        mask = np.zeros(np.shape(run.input_ids), bool)
        for place, (row, tokens) in enumerate(zip(batch, chosen, strict=True)):
            if turn < len(tokens):
                first = tokens[turn]
                mask[place, first : None if first == row["length"] else first + 1] = True
        maps = run.heatmap(mask)
        for place, (row, tokens) in enumerate(zip(batch, chosen, strict=True)):
            if turn < len(tokens) and run.finite[place]:
                name = heatmap_name(row["row"], tokens[turn])
                heatmaps.write(name, encode_png(overlay(run.images[place], maps[place])))
    return [bool(finite) for finite in run.finite[: len(batch)]]
