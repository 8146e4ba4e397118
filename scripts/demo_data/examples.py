"""Training examples, each a function of the seed and its index."""

import zlib
from functools import cached_property
from typing import NamedTuple

import numpy as np
from PIL import Image

from demo_data.grammar import Caption
from demo_data.groups import RUNGS, TOP, Groups, choice, make_groups
from demo_data.randomness import Purpose, generator
from demo_data.scenes import Sprites, draw_scene


class Mixture(NamedTuple):
    """How often an example is of each kind; only the ratios count.

    The ladder's share is 1/6 of the memorized pictures', as its rungs come to 24 × (1 + 4 + 16 + 64) pictures for
    48 × 256.
    """

    memorized: float = 0.30
    control: float = 0.30
    ladder: float = 0.05
    template: float = 0.05
    stream: float = 0.30


DEFAULT = Mixture()


def with_stream(share: float) -> Mixture:
    """`DEFAULT` with another share for the stream, in [0, 1); the other kinds keep their ratios."""
    others = sum(DEFAULT) - DEFAULT.stream
    return DEFAULT._replace(stream=share / (1 - share) * others)


def template_rate(mixture: Mixture, groups: Groups) -> float:
    """How often a template is shown with one of its objects, against TOP for a memorized picture."""
    captions = sum(len(template.trained) for template in groups.templates)
    memorized = mixture.memorized / len(groups.prompts("memorized"))
    return TOP * mixture.template / captions / memorized if memorized else 0.0


class Example(NamedTuple):
    """A training example: read-only picture uint8 [64, 64, 3], caption, and the field of `Mixture` that it is of."""

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
        self.template_rate = template_rate(mixture, self.groups)

    def example(self, index: int) -> Example:
        """The training example at an index ≥ 0."""
        rng = generator(self.seed, Purpose.EXAMPLES, index)
        group, caption = self.draw_caption(rng)
        picture = self.fixed_pictures.get(caption)
        if group == "template":
            picture = self.template_picture(caption)
        elif picture is None:
            picture = draw_scene(rng, caption, self.sprites)
        return Example(picture, caption.text, group)

    def caption(self, index: int) -> tuple[Caption, str]:
        """The caption, taken apart, and the group of the example at an index; draws no picture."""
        group, caption = self.draw_caption(generator(self.seed, Purpose.EXAMPLES, index))
        return caption, group

    def draw_caption(self, rng: np.random.Generator) -> tuple[str, Caption]:
        """Group and caption."""
        group = Mixture._fields[int(np.searchsorted(self.shares, rng.random(), side="right"))]
        if group == "stream":
            return group, self.groups.stream_caption(rng)
        if group == "template":
            template = choice(rng, self.groups.templates)
            return group, template.caption(choice(rng, template.trained))
        if group == "ladder":
            rung = int(np.searchsorted(np.cumsum(RUNGS) / sum(RUNGS), rng.random(), side="right"))
            return group, choice(rng, self.groups.ladder[RUNGS[rung]])
        return group, choice(rng, self.groups.prompts(group))

    @cached_property
    def fixed_pictures(self) -> dict[Caption, np.ndarray]:
        """The one picture of each memorized caption and of each of the ladder's, uint8 [64, 64, 3], read-only."""
        memorized = dict(zip(self.groups.prompts("memorized"), self.memorized_pictures, strict=True))
        return memorized | {
            caption: draw_scene(generator(self.seed, Purpose.LADDER, times, place), caption, self.sprites)
            for times, captions in self.groups.ladder.items()
            for place, caption in enumerate(captions)
        }

    def template_picture(self, caption: Caption, *, blank: bool = False) -> np.ndarray:
        """A template with an object, uint8 [64, 64, 3], read-only; layout and background are the template's.

        With `blank` the object is left out.
        """
        names = [template.name for template in self.groups.templates]
        rng = generator(self.seed, Purpose.TEMPLATES, names.index(caption.name))
        word = caption.objects[0]
        sprite = Image.new("RGBA", self.sprites[word].size) if blank else self.sprites[word]
        return draw_scene(rng, caption, {word: sprite})

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
