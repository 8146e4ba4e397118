"""Training examples, each a function of the seed and its index."""

import zlib
from functools import cached_property
from typing import NamedTuple

import numpy as np

from demo_data.grammar import Caption
from demo_data.groups import make_groups
from demo_data.randomness import Purpose, generator
from demo_data.scenes import Sprites, draw_scene


class Mixture(NamedTuple):
    """How often an example is of each kind; only the ratios count."""

    memorized: float = 0.35
    control: float = 0.35
    stream: float = 0.30


DEFAULT = Mixture()


class Example(NamedTuple):
    """A training example: read-only picture uint8 [64, 64, 3], caption, and "memorized", "control" or "stream"."""

    picture: np.ndarray
    caption: str
    group: str


class DemoData:
    """An endless training set that any index can be read from, in any order.

    Everything follows from `seed` and `mixture` (and the versions of NumPy and Pillow): to resume, a loader needs
    nothing but the next index.
    """

    def __init__(self, sprites: Sprites, seed: int = 0, mixture: Mixture = DEFAULT):
        self.sprites = sprites
        self.seed = seed
        self.groups = make_groups(seed)
        self.shares = np.cumsum(mixture) / np.sum(mixture)

    def example(self, index: int) -> Example:
        """The training example at an index ≥ 0."""
        rng = generator(self.seed, Purpose.EXAMPLES, index)
        group, place, caption = self.draw_caption(rng)
        picture = self.memorized_pictures[place] if group == "memorized" else draw_scene(rng, caption, self.sprites)
        return Example(picture, caption.text, group)

    def caption(self, index: int) -> tuple[Caption, str]:
        """The caption, taken apart, and the group of the example at an index; draws no picture."""
        group, _, caption = self.draw_caption(generator(self.seed, Purpose.EXAMPLES, index))
        return caption, group

    def draw_caption(self, rng: np.random.Generator) -> tuple[str, int, Caption]:
        """Group, place among the group's prompts (0 in the stream), caption."""
        group = Mixture._fields[int(np.searchsorted(self.shares, rng.random(), side="right"))]
        if group == "stream":
            return group, 0, self.groups.stream_caption(rng)
        prompts = self.groups.prompts(group)
        place = int(rng.integers(len(prompts)))
        return group, place, prompts[place]

    @cached_property
    def memorized_pictures(self) -> np.ndarray:
        """The fixed pictures in the order of `groups.prompts("memorized")`, uint8 [48, 64, 64, 3], read-only."""
        prompts = self.groups.prompts("memorized")
        generators = [generator(self.seed, Purpose.MEMORIZED, place) for place in range(len(prompts))]
        drawn = [draw_scene(rng, caption, self.sprites) for rng, caption in zip(generators, prompts, strict=True)]
        pictures = np.stack(drawn)
        pictures.flags.writeable = False  # examples are views of it
        return pictures

    def fresh_picture(self, caption: Caption, number: int) -> np.ndarray:
        """One of a caption's pictures that no training example shows, uint8 [64, 64, 3]; same number, same picture."""
        rng = generator(self.seed, Purpose.FRESH, number, zlib.crc32(caption.text.encode()))
        return draw_scene(rng, caption, self.sprites)
