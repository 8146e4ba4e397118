"""One picture that tells the story: what was trained on, what is generated, where the attention goes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from memattn_jax.entropy import mean_over_sites, token_entropy
from memattn_jax.similarity import normalized_correlation

if TYPE_CHECKING:
    from memattn_jax.pipeline import Samples
    from memattn_jax.tokenizer import Tokenizer


class Story(NamedTuple):
    """One prompt's row.

    Attributes:
      title: what kind of prompt it is.
      prompt: the text.
      training: uint8 [height, width, 3], the nearest picture among those memorized.
      generated: likewise, as the model samples it.
      mitigated: likewise, with the mitigation.
      correlations: of generated and mitigated with training.
      tokens: the prompt's tokens, begin and end among them; the padding's attention is summed as one more.
      attention: [2, tokens + 1], without and with the mitigation, mean over steps, layers and heads.
      entropy: [2, steps], in nats.
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


def tell(
    title: str,
    plain: "Samples",
    mitigated: "Samples",
    row: int,
    tokenizer: "Tokenizer",
    memorized: Mapping[str, np.ndarray],
) -> Story:
    """One row of two runs, and the nearest of the memorized pictures.

    Args:
      title: what kind of prompt it is.
      plain: a run without mitigation.
      mitigated: the same rows with it.
      row: which of them.
      tokenizer: the model's.
      memorized: {caption: picture uint8 [height, width, 3]}; a prompt among them is compared to its own picture.
    """
    prompt, length = plain.prompts[row], int(plain.lengths[row])
    pictures = np.stack([plain.images[row], mitigated.images[row]])
    candidates = np.stack([memorized[prompt]] if prompt in memorized else list(memorized.values()))
    correlations = normalized_correlation(pictures, candidates)  # [2, candidates]
    nearest = int(correlations[0].argmax())
    means = [mean_over_sites(run.tokens)[:, row] for run in (plain, mitigated)]  # [steps, tokens] each
    attention = np.stack([np.asarray(mean).mean(axis=0) for mean in means])
    return Story(
        title,
        prompt,
        candidates[nearest],
        pictures[0],
        pictures[1],
        (float(correlations[0, nearest]), float(correlations[1, nearest])),
        tokenizer.words(plain.input_ids[row, :length]),
        np.concatenate([attention[:, :length], attention[:, length:].sum(axis=1, keepdims=True)], axis=1),
        np.stack([np.asarray(token_entropy(mean)) for mean in means]),
    )


LABELS = ("as it is", "mitigated")
COLOURS = ("tab:red", "tab:blue")


def plot_showcase(path: Path | IO[bytes], stories: Sequence[Story]) -> None:
    """Draws a row for each prompt: three pictures, the attention of each token, the entropy over the steps."""
    figure = Figure(figsize=(14, 3.4 * len(stories)), layout="constrained")
    rows = figure.subplots(len(stories), 5, width_ratios=(1, 1, 1, 1.7, 1.5), squeeze=False)
    for (training, generated, mitigated, bars, curves), story in zip(rows, stories, strict=True):
        show(training, story.training, "nearest memorized picture")
        show(generated, story.generated, f"generated\ncorrelation {story.correlations[0]:.2f}")
        show(mitigated, story.mitigated, f"mitigated\ncorrelation {story.correlations[1]:.2f}")
        training.set_ylabel(story.title, fontsize="large", fontweight="bold")
        plot_attention(bars, story)
        plot_curves(curves, story)
    low, high = np.min([s.entropy.min() for s in stories]), np.max([s.entropy.max() for s in stories])
    for row, story in zip(rows, stories, strict=True):
        row[-1].set_ylim(low - 0.05, high + 0.05)
        row[1].set_xlabel(f"“{story.prompt}”", fontsize="small", loc="center", wrap=True)
    figure.savefig(path, dpi=110)


def show(axes: Axes, picture: np.ndarray, title: str) -> None:
    """A picture without ticks."""
    axes.imshow(picture, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize="small")


def plot_attention(axes: Axes, story: Story) -> None:
    """The attention of each token, horizontal bars in the order of the prompt."""
    places = np.arange(len(story.tokens) + 1)
    for offset, values, label, colour in zip((-0.2, 0.2), story.attention, LABELS, COLOURS, strict=True):
        axes.barh(places + offset, values, 0.4, label=label, color=colour)
    axes.set_yticks(places, [*story.tokens, "padding"], fontsize="x-small")
    axes.invert_yaxis()
    axes.set_title("attention of each token", fontsize="small")
    axes.legend(fontsize="x-small")


def plot_curves(axes: Axes, story: Story) -> None:
    """Attention entropy over the sampling steps."""
    for values, label, colour in zip(story.entropy, LABELS, COLOURS, strict=True):
        axes.plot(np.arange(1, len(values) + 1), values, label=label, color=colour)
    axes.set_title("attention entropy (nats)", fontsize="small")
    axes.set_xlabel("sampling step", fontsize="small")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="x-small")
