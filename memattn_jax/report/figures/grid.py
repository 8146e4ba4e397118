"""Pictures in a grid, heatmaps over them: a block of rows for each prompt."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure, SubFigure

from memattn_jax.report.figures.rendering import percent, wrapped
from memattn_jax.report.heatmaps import overlay

COLUMNS = 9
CELL = 1.15  # inches
TITLE = 0.42  # above each row of pictures
HEADING = 0.3  # above each block
SCALE = 0.85  # the colour bar and what it says


class Cell(NamedTuple):
    """One picture.

    Attributes:
      title: above it.
      image: uint8 [height, width, 3].
      heat: float [height, width], drawn over it; None draws the picture alone.
      note: below the title.
    """

    title: str
    image: np.ndarray
    heat: np.ndarray | None = None
    note: str = ""


def share_cell(title: str, image: np.ndarray, heat: np.ndarray) -> Cell:
    """A heatmap of shares, whose highest one stands below the title."""
    return Cell(title, image, heat, f"0–{percent(float(np.nan_to_num(heat).max()))}")


class Block(NamedTuple):
    """The pictures of one prompt.

    Attributes:
      heading: above them, drawn as it is.
      cells: in rows of at most `COLUMNS`.
    """

    heading: str
    cells: Sequence[Cell]


def plot_grid(blocks: Sequence[Block], scale: str, columns: int | None = None) -> Figure:
    """Draws blocks of pictures above each other, and a colour bar.

    Args:
      blocks: at least one.
      scale: what the colour bar says.
      columns: pictures in a row; None is as many as the longest block has, at most `COLUMNS`.
    """
    columns = columns or min(COLUMNS, max(len(block.cells) for block in blocks))
    lines = [-(-len(block.cells) // columns) for block in blocks]
    width = max(6.0, columns * CELL)
    headings = [wrapped(block.heading, width) for block in blocks]
    heights = [
        HEADING * (1 + text.count("\n")) + count * (CELL + TITLE) for text, count in zip(headings, lines, strict=True)
    ] + [SCALE]
    figure = Figure(figsize=(width, sum(heights)), layout="constrained")
    *parts, last = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights).ravel()
    for part, heading, block, count in zip(parts, headings, blocks, lines, strict=True):
        part.suptitle(heading, fontsize="medium", x=0.01, ha="left", fontweight="bold")
        axes = part.subplots(count, columns, squeeze=False).ravel()
        for each in axes:
            each.set_axis_off()
        for each, cell in zip(axes, block.cells, strict=False):
            draw(each, cell)
    draw_scale(last, scale)
    return figure


def draw(axes: Axes, cell: Cell) -> None:
    """Draws one picture and its title."""
    image = cell.image if cell.heat is None else overlay(cell.image, cell.heat)
    axes.imshow(image, interpolation="nearest")
    axes.set_title(f"{cell.title}\n{cell.note}", fontsize="small", pad=3)


def draw_scale(part: SubFigure, label: str) -> None:
    """Draws the colour bar, as the colours look over grey."""
    ramp = overlay(np.full((1, 256, 3), 128, np.uint8), np.linspace(0, 1, 256)[None])[0] / 255
    axes = part.add_axes((0.3, 0.68, 0.4, 0.22))
    part.colorbar(ScalarMappable(cmap=ListedColormap(ramp)), cax=axes, orientation="horizontal", ticks=[])
    axes.set_xlabel(label, fontsize="small")
    for place, text, side in ((-0.02, "0", "right"), (1.02, "highest", "left")):
        axes.text(place, 0.5, text, transform=axes.transAxes, ha=side, va="center", fontsize="small")
