"""One figure that shows what memorization is: the training image, the generated images, and where tokens look."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from memattn_jax import demo
from memattn_jax.copies.correlation import normalized_correlation
from memattn_jax.report.heatmaps import overlay
from memattn_jax.report.plots import PLAIN, draw_band
from memattn_jax.report.results import Measured

if TYPE_CHECKING:
    from memattn_jax.checkpoints.tokenizer import Tokenizer
    from memattn_jax.storage import Store

HOW_TO_READ = (
    "How to read it: for a memorized prompt, attention leaves the words and spreads over the end token and the padding "
    '(the "summary tokens" that the paper says it collapses on), so a larger share there and a higher entropy are bad. '
    "The small pictures show where each token looks, each on its own scale."
)
CELL, GAP = 1.3, 0.1  # inches of a picture, and between two
MARGIN, TITLE, BELOW = 0.55, 0.5, 0.35  # to the left of pictures, above and below them


class Story(NamedTuple):
    """One prompt's row.

    Attributes:
      title: the kind of prompt.
      prompt: the text.
      training: uint8 [height, width, 3], the nearest image among those memorized.
      generated: likewise, without mitigation.
      mitigated: likewise, with it.
      correlations: of generated and mitigated with training.
      tokens: "begin", the prompt's own tokens, and "end + padding", the summary tokens.
      attention: [tokens], share of each without mitigation, mean over steps, layers and heads.
      heatmaps: [tokens, height, width], where each looks, likewise.
      entropy: [steps], in nats, without mitigation: masked tokens lower it for every prompt.
    """

    title: str
    prompt: str
    training: np.ndarray
    generated: np.ndarray
    mitigated: np.ndarray
    correlations: tuple[float, float]
    tokens: list[str]
    attention: np.ndarray
    heatmaps: np.ndarray
    entropy: np.ndarray

    def __str__(self) -> str:
        """One line about it."""
        before, after = self.correlations
        words, summary = self.attention[1:-1].sum(), self.attention[-1]
        return (
            f"{self.title}: correlation with the nearest memorized image {before:.2f}, mitigated {after:.2f}; "
            f"attention on the words {words:.0%}, on end token and padding {summary:.0%}"
        )


def make_story(
    title: str,
    plain: Measured,
    mitigated: Measured,
    row: int,
    tokenizer: "Tokenizer",
    memorized: Mapping[str, np.ndarray],
) -> Story:
    """One row of two runs, and the nearest of the memorized images.

    Args:
      title: the kind of prompt.
      plain: a run without mitigation, with the tap "heatmaps".
      mitigated: the same rows with it.
      row: index in both runs.
      tokenizer: the model's.
      memorized: {caption: image uint8 [height, width, 3]}; a prompt among them is compared to its own image.
    """
    run = plain.run
    prompt, length = run.prompts[row], int(run.lengths[row])
    images = np.stack([run.images[row], mitigated.run.images[row]])
    candidates = np.stack([memorized[prompt]] if prompt in memorized else list(memorized.values()))
    correlations = normalized_correlation(images, candidates)  # [2, candidates]
    nearest = int(correlations[0].argmax())
    attention = plain.attention[row]
    shown = [*range(length - 1), "summary"]
    return Story(
        title,
        prompt,
        candidates[nearest],
        images[0],
        images[1],
        (float(correlations[0, nearest]), float(correlations[1, nearest])),
        ["begin", *tokenizer.words(run.input_ids[row, 1 : length - 1]), "end + padding"],
        np.append(attention[: length - 1], attention[length - 1 :].sum()),
        np.stack([run.heatmap(token)[row] for token in shown]),
        plain.entropy[:, row],
    )


def show_memorization(
    tokenizer: "Tokenizer", made: Sequence[tuple[int, Measured, int]], store: "Store", band: np.ndarray | None
) -> None:
    """Writes showcase.png for the built-in model's own prompts, and prints how to read it.

    Args:
      tokenizer: the model's.
      made: of each image whether it is mitigated, its batch, and its place in it; equally many of both kinds, in the
        same order.
      store: receives the file.
      band: see `plot_showcase`.
    """
    memorized = demo.memorized_pictures()
    titles = dict(zip(demo.SHOWCASE, ("memorized prompt", "clean prompt"), strict=True))
    plain = [(each, place) for mitigated, each, place in made if not mitigated]
    masked = [each for mitigated, each, _ in made if mitigated]
    found = {
        each.run.prompts[place]: make_story(titles[each.run.prompts[place]], each, other, place, tokenizer, memorized)
        for (each, place), other in reversed(list(zip(plain, masked, strict=True)))  # the first seed stays
    }
    stories = [found[prompt] for prompt in demo.SHOWCASE]
    sink = io.BytesIO()
    plot_showcase(sink, stories, band)
    store.write("showcase.png", sink.getvalue())
    print(*stories, HOW_TO_READ, sep="\n")


def plot_showcase(path: Path | IO[bytes], stories: Sequence[Story], band: np.ndarray | None) -> None:
    """Draws two rows for each prompt: three images and the entropy over the steps; and where each token looks.

    Args:
      path: where to write, or an open file.
      stories: the rows.
      band: [2, steps], the range of entropy of most clean prompts; None draws none.
    """
    columns = max(len(story.tokens) for story in stories)
    width, height = MARGIN + max(columns, 6) * (CELL + GAP), 2 * (CELL + TITLE) + BELOW
    figure = Figure(figsize=(width, height * len(stories)))
    drawn = [story.entropy for story in stories] + ([] if band is None else [band])
    low, high = min(values.min() for values in drawn), max(values.max() for values in drawn)
    for number, story in enumerate(stories):
        top = number * height + TITLE
        lower = top + CELL + TITLE
        training, generated, mitigated = (add_axes(figure, place, top) for place in range(3))
        show(training, story.training, "nearest\nmemorized image")
        show(generated, story.generated, f"generated\ncorrelation {signed(story.correlations[0])}")
        show(mitigated, story.mitigated, f"mitigated\ncorrelation {signed(story.correlations[1])}")
        training.set_ylabel(story.title, fontsize="large", fontweight="bold")
        curve = add_axes(figure, 3.4, top, CELL * 0.8, width - MARGIN - 3.4 * (CELL + GAP) - GAP)
        plot_curve(curve, story, band)
        curve.set_ylim(low - 0.1, high + 0.1)
        if number == 0:
            curve.legend(fontsize="small", loc="lower right")
        plot_tokens([add_axes(figure, place, lower) for place in range(len(story.tokens))], story)
    figure.savefig(path, dpi=110)


def add_axes(figure: Figure, place: float, top: float, height: float = CELL, width: float = CELL) -> Axes:
    """Axes at a place in a row of pictures; `top` is inches from the figure's upper edge, as are height and width."""
    whole_width, whole_height = figure.get_size_inches()
    left, bottom = MARGIN + place * (CELL + GAP), whole_height - top - height
    return figure.add_axes((left / whole_width, bottom / whole_height, width / whole_width, height / whole_height))


def signed(number: float) -> str:
    """Formats a number with two digits, with a minus sign instead of a hyphen."""
    return f"{number:.2f}".replace("-", "−")


def show(axes: Axes, image: np.ndarray, title: str) -> None:
    """Draws an image without ticks."""
    axes.imshow(image, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize="medium")


def plot_tokens(axes: Sequence[Axes], story: Story) -> None:
    """Draws where each token of the prompt looks, and its share of the attention, the summary tokens framed."""
    for each, token, share, heat in zip(axes, story.tokens, story.attention, story.heatmaps, strict=True):
        show(each, overlay(story.generated, heat), f"{token}\n{100 * share:.2g} %")
    axes[0].set_ylabel("where each\ntoken looks", fontsize="medium")
    note = "lighter: more of a pixel's attention, each on its own scale; below each token its share of all"
    axes[len(axes) // 2].set_xlabel(f"{note}; more on end + padding is worse")
    axes[-1].set_title(axes[-1].get_title(), fontsize="medium", fontweight="bold", color=PLAIN)
    for spine in axes[-1].spines.values():
        spine.set(color=PLAIN, linewidth=2.5)


def plot_curve(axes: Axes, story: Story, band: np.ndarray | None) -> None:
    """Draws the attention entropy over the sampling steps, beside that of clean prompts."""
    draw_band(axes, band)
    axes.plot(np.arange(1, len(story.entropy) + 1), story.entropy, color=PLAIN, linewidth=2, label="generated")
    axes.set_title("attention entropy (nats) over the sampling steps: higher is worse", fontsize="medium")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=(1, 2, 5, 10)))
    axes.tick_params(labelsize="small")
    axes.grid(alpha=0.3)
