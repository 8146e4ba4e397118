"""One figure that shows what memorization is: the training image, the generated images, and the attention."""

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
from memattn_jax.entropy import mean_over_sites, token_entropy
from memattn_jax.report.plots import BAND, MITIGATED, PLAIN, draw_band

if TYPE_CHECKING:
    from memattn_jax.checkpoints.tokenizer import Tokenizer
    from memattn_jax.pipeline import Samples
    from memattn_jax.storage import Store

HOW_TO_READ = (
    "How to read it: for a memorized prompt, attention leaves the words and spreads over the end token and the padding "
    '(the "summary tokens" that the paper says it collapses on), so a larger share there and a higher entropy are bad.'
)


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
      attention: [2, tokens], share of each without and with the mitigation, mean over steps, layers and heads.
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
    entropy: np.ndarray

    def __str__(self) -> str:
        """One line about it."""
        before, after = self.correlations
        words, summary = self.attention[0, 1:-1].sum(), self.attention[0, -1]
        return (
            f"{self.title}: correlation with the nearest memorized image {before:.2f}, mitigated {after:.2f}; "
            f"attention on the words {words:.0%}, on end token and padding {summary:.0%}"
        )


def make_story(
    title: str,
    plain: "Samples",
    mitigated: "Samples",
    row: int,
    tokenizer: "Tokenizer",
    memorized: Mapping[str, np.ndarray],
) -> Story:
    """One row of two runs, and the nearest of the memorized images.

    Args:
      title: the kind of prompt.
      plain: a run without mitigation.
      mitigated: the same rows with it.
      row: index in both runs.
      tokenizer: the model's.
      memorized: {caption: image uint8 [height, width, 3]}; a prompt among them is compared to its own image.
    """
    prompt, length = plain.prompts[row], int(plain.lengths[row])
    images = np.stack([plain.images[row], mitigated.images[row]])
    candidates = np.stack([memorized[prompt]] if prompt in memorized else list(memorized.values()))
    correlations = normalized_correlation(images, candidates)  # [2, candidates]
    nearest = int(correlations[0].argmax())
    means = [mean_over_sites(run.tokens)[:, row] for run in (plain, mitigated)]  # [steps, tokens] each
    attention = np.stack([np.asarray(mean).mean(axis=0) for mean in means])
    summary = attention[:, length - 1 :].sum(axis=1, keepdims=True)
    return Story(
        title,
        prompt,
        candidates[nearest],
        images[0],
        images[1],
        (float(correlations[0, nearest]), float(correlations[1, nearest])),
        ["begin", *tokenizer.words(plain.input_ids[row, 1 : length - 1]), "end + padding"],
        np.concatenate([attention[:, : length - 1], summary], axis=1),
        np.asarray(token_entropy(means[0])),
    )


def show_memorization(
    tokenizer: "Tokenizer", made: Sequence[tuple[int, "Samples", int]], store: "Store", band: np.ndarray | None
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
    plain = [(run, place) for mitigated, run, place in made if not mitigated]
    masked = [run for mitigated, run, _ in made if mitigated]
    found = {
        run.prompts[place]: make_story(titles[run.prompts[place]], run, other, place, tokenizer, memorized)
        for (run, place), other in reversed(list(zip(plain, masked, strict=True)))  # the first seed stays
    }
    stories = [found[prompt] for prompt in demo.SHOWCASE]
    sink = io.BytesIO()
    plot_showcase(sink, stories, band)
    store.write("showcase.png", sink.getvalue())
    print(*stories, HOW_TO_READ, sep="\n")


def plot_showcase(path: Path | IO[bytes], stories: Sequence[Story], band: np.ndarray | None) -> None:
    """Draws a row for each prompt: three images, the attention of each token, the entropy over the steps.

    Args:
      path: where to write, or an open file.
      stories: the rows.
      band: [2, steps], the range of entropy of most clean prompts; None draws none.
    """
    figure = Figure(figsize=(12, 2.9 * len(stories)), layout="constrained")
    rows = figure.subplots(len(stories), 5, width_ratios=(1, 1, 1, 1.6, 1.9), squeeze=False)
    drawn = [story.entropy for story in stories] + ([] if band is None else [band])
    low, high = min(values.min() for values in drawn), max(values.max() for values in drawn)
    for (training, generated, mitigated, bars, curve), story in zip(rows, stories, strict=True):
        show(training, story.training, "nearest\nmemorized image")
        show(generated, story.generated, f"generated\ncorrelation {signed(story.correlations[0])}")
        show(mitigated, story.mitigated, f"mitigated\ncorrelation {signed(story.correlations[1])}")
        training.set_ylabel(story.title, fontsize="large", fontweight="bold")
        generated.set_xlabel(f"“{story.prompt}”", fontsize="medium", loc="center")
        plot_attention(bars, story)
        plot_curve(curve, story, band)
        bars.set_xlim(0, 1.05 * max(story.attention.max() for story in stories))
        curve.set_ylim(low - 0.1, high + 0.1)
    rows[0, 3].legend(fontsize="small", loc="center right")
    rows[0, 4].legend(fontsize="small", loc="lower right")
    rows[-1, 4].set_xlabel("sampling step")
    rows[-1, 3].set_xlabel("more on end + padding is worse")
    figure.savefig(path, dpi=110)


def signed(number: float) -> str:
    """Formats a number with two digits, with a minus sign instead of a hyphen."""
    return f"{number:.2f}".replace("-", "−")


def show(axes: Axes, image: np.ndarray, title: str) -> None:
    """Draws an image without ticks."""
    axes.imshow(image, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize="medium")


def plot_attention(axes: Axes, story: Story) -> None:
    """Draws each token's share of the attention as bars in the order of the prompt, the summary tokens highlighted."""
    places = np.arange(len(story.tokens))
    axes.axhspan(len(places) - 1.5, len(places) - 0.5, color=BAND, zorder=0)
    styles = ((PLAIN, None, "generated"), (MITIGATED, "///", "mitigated"))
    for offset, values, (colour, hatch, label) in zip((-0.2, 0.2), story.attention, styles, strict=True):
        axes.barh(places + offset, values, 0.4, label=label, color=colour, hatch=hatch, edgecolor="white", linewidth=0)
    axes.set_yticks(places, story.tokens)
    axes.set_ylim(len(places) - 0.5, -0.5)
    axes.set_title("share of the attention", fontsize="medium")


def plot_curve(axes: Axes, story: Story, band: np.ndarray | None) -> None:
    """Draws the attention entropy over the sampling steps, beside that of clean prompts."""
    draw_band(axes, band)
    axes.plot(np.arange(1, len(story.entropy) + 1), story.entropy, color=PLAIN, linewidth=2, label="generated")
    axes.set_title("attention entropy (nats), higher is worse", fontsize="medium")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=(1, 2, 5, 10)))
    axes.grid(alpha=0.3)
