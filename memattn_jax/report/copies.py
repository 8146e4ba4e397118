"""What `memattn copies` writes: tables of similarities and sheets of the images that are most alike."""

import csv
import io
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from memattn_jax.copies.agreement import Agreement
from memattn_jax.copies.embedding import Measure
from memattn_jax.copies.search import Match
from memattn_jax.pictures.decoding import decode
from memattn_jax.pictures.files import read_image
from memattn_jax.text import counted, printable

PAIRS, PAIRS_IN_ROW = 24, 3  # on a sheet
ROWS, SEEDS = 8, 6
PIXELS = 256  # of an image on a sheet, at most
LABEL = 34  # characters of a line below an image


class Agreeing(NamedTuple):
    """How far the images of a prompt agree by one measure.

    Attributes:
      prompt: the text; "" where it is not known.
      files: the images.
      found: their agreement.
    """

    prompt: str
    files: list[Path]
    found: Agreement


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes a table, one or more rows with the same columns."""
    rows = list(rows)
    sink = io.StringIO(newline="")
    writer = csv.DictWriter(sink, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    path.write_text(sink.getvalue(), encoding="utf-8", errors="backslashreplace", newline="")


def match_row(match: Match, texts: Mapping[str, str]) -> dict[str, Any]:
    """A row of copies.csv; `texts` are those of the image's file."""
    return {
        "image": match.picture,
        "prompt": texts.get("prompt"),
        "seed": texts.get("seed"),
        "measure": match.measure.model,
        "preset": match.measure.preset,
        "similarity": f"{match.similarity:.6f}",
        "threshold": match.threshold,
        "copy": int(match.similarity >= match.threshold),
        "reference": match.reference,
        "equal_references": match.equal,
    }


def agreement_row(one: Agreeing) -> dict[str, Any]:
    """A row of agreement.csv."""
    return {
        "prompt": one.prompt,
        "images": len(one.files),
        "measure": one.found.measure.model,
        "preset": one.found.measure.preset,
        "mean": f"{one.found.mean:.6f}",
        "highest": f"{one.found.highest:.6f}",
        "threshold": one.found.threshold,
        "alike": len(one.found.clique),
        "clusters": "+".join(str(len(cluster)) for cluster in one.found.clusters),
        "files_alike": ";".join(str(one.files[i]) for i in one.found.clique),
    }


def statistics(matches: Sequence[Match]) -> list[dict[str, Any]]:
    """Of every measure its name, its numbers over all images, and how many of these it takes for copies."""
    found = []
    for measure, group in by_measure(matches):
        scores = np.array([one.similarity for one in group])
        numbers = {"median": float(np.median(scores)), "highest": float(scores.max()), "images": len(group)}
        threshold = group[0].threshold
        found.append(
            {**measure._asdict(), **numbers, "threshold": threshold, "copies": int((scores >= threshold).sum())}
        )
    return found


def summary(matches: Sequence[Match], references: str, listed: int) -> list[str]:
    """Lines for the terminal: every measure with its numbers, and the most similar pairs by it.

    Args:
      matches: of all measures.
      references: what they were compared with, such as "48 images in training".
      listed: pairs of each measure.
    """
    lines = []
    for (measure, group), one in zip(by_measure(matches), statistics(matches), strict=True):
        lines.append(
            f"{measure}, nearest of {references}: median {one['median']:.3f}, highest {one['highest']:.3f}; "
            f"{one['copies']} of {counted(one['images'], 'image')} at {one['threshold']:g} or more"
        )
        for pair in sorted(group, key=lambda pair: -pair.similarity)[:listed]:
            more = f" and {pair.equal - 1} equal" if pair.equal > 1 else ""
            names = f"{printable(pair.picture.name, 60)} ~ {printable(pair.reference.name, 60)}{more}"
            lines.append(f"  {pair.similarity:.3f} by {measure.model}  {names}")
    return lines


def by_measure(matches: Sequence[Match]) -> list[tuple[Measure, list[Match]]]:
    """Matches grouped by measure, in the order in which measures first occur.

    Presets of pixels name the image's size. Where images have several, these are one group, which says so.
    """
    groups: dict[str, list[Match]] = {}
    for one in matches:
        groups.setdefault(one.measure.model, []).append(one)
    found = []
    for model, group in groups.items():
        presets = list(dict.fromkeys(one.measure.preset for one in group))
        preset = presets[0] if len(presets) == 1 else f"{presets[0]} and {len(presets) - 1} more, by image size"
        found.append((Measure(model, preset), group))
    return found


def draw_pairs(path: Path, matches: Sequence[Match], references: str) -> None:
    """Draws the most similar images and references by the first measure; all measures' numbers stand below each.

    Args:
      path: of the PNG.
      matches: of all measures.
      references: what the images were compared with.
    """
    leading = matches[0].measure.model
    first = sorted((one for one in matches if one.measure.model == leading), key=lambda one: -one.similarity)
    shown = first[:PAIRS]
    rows, columns = -(-len(shown) // PAIRS_IN_ROW), min(len(shown), PAIRS_IN_ROW)
    figure = Figure(figsize=(4.8 * columns, 1 + 2.8 * rows), layout="constrained")
    title = f"The {counted(len(shown), 'pair')} most similar of {len(first)} by {shown[0].measure}"
    measures = ", ".join(map(str, dict.fromkeys(one.measure for one in matches if one.picture == shown[0].picture)))
    lines = textwrap.wrap(f"image and reference, of {references}; {measures}", 58 * columns)
    figure.suptitle("\n".join([title, *(line.replace("$", r"\$") for line in lines)]), fontsize="medium")
    axes = figure.subplots(rows, 3 * columns, squeeze=False, width_ratios=(1, 1, 0.1) * columns)
    for place in axes.ravel():
        place.axis("off")
    for number, one in enumerate(shown):
        left, right = axes[number // columns, 3 * (number % columns) :][:2]
        others = [other for other in matches if other.picture == one.picture]
        show(left, one.picture, [one.picture.name])
        equal = f" (and {one.equal - 1} equal)" if one.equal > 1 else ""
        show(right, one.reference, [f"{one.reference.name}{equal}", *(short(other, one) for other in others)])
    figure.savefig(path, dpi=100)


def short(match: Match, leading: Match) -> str:
    """A measure's number for the label of a pair, and its reference where that is another."""
    where = "" if match.reference == leading.reference else f" ({match.reference.name})"
    return f"{match.similarity:.2f} {match.measure.model}{where}"


def draw_agreement(path: Path, found: Sequence[Agreeing]) -> None:
    """Draws images of the prompts that agree most by the first measure, a row for each prompt."""
    measure = found[0].found.measure
    first = sorted((one for one in found if one.found.measure.model == measure.model), key=lambda one: -one.found.mean)
    shown = first[:ROWS]
    columns = max(min(len(one.files), SEEDS) for one in shown)
    figure = Figure(figsize=(0.5 + 1.9 * columns, 0.7 + 2.3 * len(shown)), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.12)  # type: ignore[union-attr, call-arg]
    figure.suptitle(f"Agreement of seeds by {measure}", fontsize="medium")
    for row, one in zip(figure.subplots(len(shown), columns, squeeze=False), shown, strict=True):
        alike = set(one.found.clique.tolist())
        order = sorted(range(len(one.files)), key=lambda i: (i not in alike, i))[:columns]
        for axes in row:
            axes.axis("off")
        for axes, index in zip(row, order, strict=False):
            show(axes, one.files[index], [one.files[index].name])
        numbers = f"mean {one.found.mean:.2f}, highest {one.found.highest:.2f}, {one.found.alike}"
        label = f"{numbers}\n{printable(one.prompt, 22 * columns)}"
        row[0].set_title(label.replace("$", r"\$"), fontsize="small", loc="left")
    figure.savefig(path, dpi=100)


def show(axes: Axes, path: Path, lines: Sequence[str]) -> None:
    """Draws an image with a few lines below it."""
    image = decode(read_image(path))
    image.thumbnail((PIXELS, PIXELS), Image.Resampling.BILINEAR)
    axes.imshow(np.asarray(image), interpolation="nearest")
    text = "\n".join(printable(line, LABEL) for line in lines).replace("$", r"\$")
    axes.text(0, -0.03, text, transform=axes.transAxes, va="top", fontsize="x-small")
