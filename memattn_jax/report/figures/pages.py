"""From what was seen of prompts to figures: heatmaps, heads, the copy's place, shares over the steps."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from memattn_jax.report.figures.grid import COLUMNS, Block, Cell, plot_grid, share_cell
from memattn_jax.report.figures.over_steps import Shares, plot_shares
from memattn_jax.report.figures.rendering import PROMPT, as_label, short_site
from memattn_jax.report.figures.tokens import Shown

SHARE = "share of each pixel's attention, from 0 to the number above each picture"
BAD = "more on end and padding: more like memorized"


class Seen(NamedTuple):
    """What was seen of one prompt; pictures have the image's size.

    Attributes:
      prompt: the text.
      kind: what is known of the prompt, such as "memorized prompt"; may be empty.
      image: uint8 [height, width, 3].
      shown: its tokens.
      shares: float32 [steps, shown], of the attention, mean over pixels, heads and layers.
      entropy: float32 [steps], in nats.
      heatmaps: float32 [shown, height, width].
      heads: float32 [heads, shown, height, width], of one layer; empty where not asked for.
      ending: float32 [height, width], the end token's heatmap at the last step in the finest layers.
      score: float32 [height, width], each pixel's part of the score of bright ending; None without guidance.
      nearest: uint8 [height, width, 3], the memorized image that is most similar; None where none are known.
      similarity: its correlation with the image.
    """

    prompt: str
    kind: str
    image: np.ndarray
    shown: Sequence[Shown]
    shares: np.ndarray
    entropy: np.ndarray
    heatmaps: np.ndarray
    heads: np.ndarray
    ending: np.ndarray
    score: np.ndarray | None
    nearest: np.ndarray | None
    similarity: float

    @property
    def heading(self) -> str:
        """What stands above its pictures."""
        kind = f"{self.kind}: " if self.kind else ""
        return f"{kind}“{as_label(self.prompt, PROMPT)}”"

    def drawn(self, token: int) -> tuple[str, np.ndarray]:
        """What a token is called, and the image that its heatmap is drawn over."""
        return self.shown[token].label, self.image


def draw_heatmaps(prompts: Sequence[Seen], where: str) -> Figure:
    """Where each token looks; `where` says in which layers, heads and steps."""
    blocks = []
    for each in prompts:
        cells = [share_cell(*each.drawn(token), heat) for token, heat in enumerate(each.heatmaps)]
        blocks.append(Block(each.heading, [Cell("image", each.image), *cells]))
    return plot_grid(blocks, f"{SHARE}; {where}\n{BAD}")


def draw_heads(prompts: Sequence[Seen], where: str) -> Figure:
    """Where each token looks in each head of one layer, a row for each head."""
    columns = max(len(each.shown) for each in prompts)
    blocks = []
    for each in prompts:
        for head, heats in enumerate(each.heads):
            cells = [share_cell(*each.drawn(token), heat) for token, heat in enumerate(heats)]
            blocks.append(Block(f"head {head} · {each.heading}", cells))
    return plot_grid(blocks, f"{SHARE}\n{where}; {BAD}", min(columns, COLUMNS))


def draw_copy(prompts: Sequence[Seen]) -> Figure:
    """Where in the picture the copy is: the end token's attention at the last step, and the score's map."""
    blocks = []
    for each in prompts:
        cells = [Cell("image", each.image)]
        if each.nearest is not None:
            cells.append(Cell("nearest memorized", each.nearest, note=f"correlation {each.similarity:.2f}"))
        cells.append(share_cell("end token, last step", each.image, each.ending))
        if each.score is not None:
            cells.append(Cell("score map", each.image, each.score))
        blocks.append(Block(each.heading, cells))
    score = "score map: difference of the noise predictions × end token's attention"
    return plot_grid(blocks, f"lighter: where bright ending looks for a copy\n{score}")


def draw_shares(prompts: Sequence[Seen]) -> Figure:
    """Each token's share of the attention over the steps."""
    return plot_shares(
        [
            Shares(
                each.heading,
                [shown.label for shown in each.shown],
                each.shares,
                np.array([shown.summary for shown in each.shown]),
            )
            for each in prompts
        ]
    )


def where_of(site: str | None, head: int | None, over_steps: str | None) -> str:
    """What a heatmap is a mean of, in words."""
    layer = "mean over layers" if site is None else f"layer {short_site(site)}"
    steps = "mean over steps" if over_steps is None else f"mean over steps {over_steps}"
    return f"{layer}, {'mean over heads' if head is None else f'head {head}'}, {steps}"


PAGES: Mapping[str, Callable[..., Figure]] = {
    "heatmaps": draw_heatmaps,
    "tokens": draw_shares,
    "heads": draw_heads,
    "copy": draw_copy,
}
