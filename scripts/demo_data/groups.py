"""Which captions are memorized, control, unseen and decoys: random from a seed, balanced so that text tells nothing.

A half of a group is 24 captions: every `Shape` once, which takes each of the 36 objects once and each of the 12
colours once. So any two halves hold the same common words, as often, and only their arrangement differs. Their names
have the same lengths, shape by shape, and the same syllables, each once in either word (`names.py`).

Each word of a memorized or control name occurs in that one caption. An unseen prompt needs words that the model has
learnt too, or its untrained embeddings would give it away; so they are words of the stream's names. The stream pairs
each first word with every second word but one, and those left out are the names of the unseen prompts. With 48 names
a group and similar weights in the mixture, all words of names are trained about equally often.

The pairs of objects that unseen prompts and decoys name are kept out of the stream, and no pair is named by two
prompts.

Two more groups grade memory. The **ladder** has rungs of 24 captions, dealt as a half is, each with one fixed picture
that training shows less often than a memorized one: `RUNGS` against `TOP`. A **template** has a name, a fixed layout
and a fixed background, and its object varies; two objects a template are prompts, one that it was trained with and one
that it never showed.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from typing import TypeVar

import numpy as np

from demo_data.grammar import COLOURS, LINKS, NAME_LENGTHS, OBJECTS, SHAPES, Caption, common_words
from demo_data.names import invented_words
from demo_data.randomness import Purpose, generator

PROMPT_GROUPS = ("memorized", "control", "unseen", "decoys")
RUNGS = (1, 4, 16, 64)  # how often each of the ladder's pictures is shown, against TOP for a memorized one
TOP = 256
HALVES = ("choose", "report")  # one to choose layers, thresholds and the like on, one to report
Half = tuple[Caption, ...]
Pair = frozenset[str]
NOTHING: list[set[str]] = [set()] * len(SHAPES)
Item = TypeVar("Item")


@dataclass(frozen=True)
class Template:
    """Captions that differ in their object alone.

    Attributes:
      colour: as in `Caption`.
      link: likewise.
      name: likewise.
      trained: the objects that training shows.
      prompts: an object that training shows, and one that it does not.
    """

    colour: str | None
    link: str
    name: tuple[str, str]
    trained: tuple[str, ...]
    prompts: tuple[str, str]

    def caption(self, word: str) -> Caption:
        """The caption with an object."""
        return Caption((word,), self.colour, self.link, self.name)


@dataclass(frozen=True)
class Groups:
    """All prompts, and what the stream is made of.

    Attributes:
      halves: {(group, half): its 24 captions}; decoys are in the order of the memorized captions whose names they have.
      stream_pairs: the pairs of objects that the stream may name.
      stream_names: the names' words, first and second; a stream's name never pairs two of the same place.
      ladder: {times of RUNGS: its 24 captions}.
      templates: one for each shape of a caption with one object, 12.
    """

    halves: dict[tuple[str, str], Half]
    stream_pairs: tuple[tuple[str, str], ...]
    stream_names: tuple[tuple[str, str], ...]
    ladder: dict[int, Half]
    templates: tuple[Template, ...]

    def prompts(self, group: str) -> Half:
        """Both halves of a group, 48 captions."""
        return tuple(caption for half in HALVES for caption in self.halves[group, half])

    def stream_name(self, first: int, step: int) -> tuple[str, str]:
        """A name of the stream: the first word of one place, the second word `step` ≥ 1 places further."""
        return self.stream_names[first][0], self.stream_names[(first + step) % len(self.stream_names)][1]

    def stream_caption(self, rng: np.random.Generator) -> Caption:
        """A caption of the stream: the grammar of the prompts, with words as they come."""
        if rng.random() < 0.5:
            objects: tuple[str, ...] = (choice(rng, tuple(OBJECTS)),)
        else:
            pair = choice(rng, self.stream_pairs)
            objects = pair if rng.random() < 0.5 else pair[::-1]
        colour = choice(rng, tuple(COLOURS)) if rng.random() < 0.5 else None
        count = len(self.stream_names)
        name = self.stream_name(int(rng.integers(count)), int(rng.integers(1, count)))
        return Caption(objects, colour, choice(rng, LINKS), name)

    def vocabulary(self) -> dict[str, list[str]]:
        """Every word that any caption can have: `objects`, `colours`, `names`, the `other` ones, and all `words`."""
        captions = [caption for group in (*self.halves.values(), *self.ladder.values()) for caption in group]
        named = [caption.name for caption in captions] + [template.name for template in self.templates]
        names = {word for name in named for word in name}
        parts = {
            "objects": sorted(OBJECTS),
            "colours": sorted(COLOURS),
            "names": sorted(names),
            "other": sorted(common_words() - OBJECTS.keys() - COLOURS.keys()),
        }
        return parts | {"words": sorted(word for part in parts.values() for word in part)}


def make_groups(seed: int) -> Groups:
    """Deals objects, colours and names to the groups."""
    rng = generator(seed, Purpose.GROUPS)
    words = iter(invented_words(rng, 22))
    halves: dict[tuple[str, str], Half] = {}
    taken: set[Pair] = set()
    for group in ("memorized", "control", "unseen"):
        for half in HALVES:
            names = deal_names(rng, next(words), next(words))
            halves[group, half] = deal(rng, names, taken, avoid=NOTHING)
    for half in HALVES:
        memorized = halves["memorized", half]
        names = [caption.name for caption in memorized]
        halves["decoys", half] = deal(rng, names, taken, avoid=[set(caption.objects) for caption in memorized])
    ladder = {times: deal(rng, deal_names(rng, next(words), next(words)), taken, NOTHING) for times in RUNGS}
    templates = deal_templates(rng, deal_names(rng, next(words), next(words)))
    unseen = [caption for half in HALVES for caption in halves["unseen", half]]
    decoys = [caption for half in HALVES for caption in halves["decoys", half]]
    held_out = {frozenset(caption.objects) for caption in unseen + decoys}
    return Groups(
        halves=halves,
        stream_pairs=tuple(pair for pair in combinations(OBJECTS, 2) if frozenset(pair) not in held_out),
        stream_names=tuple(caption.name for caption in unseen),
        ladder=ladder,
        templates=templates,
    )


def deal_templates(rng: np.random.Generator, names: list[tuple[str, str]]) -> tuple[Template, ...]:
    """A template for every shape with one object; no object is a prompt twice."""
    words, colours = iter(shuffle(rng, OBJECTS)), iter(shuffle(rng, COLOURS))
    templates = []
    for shape, name in zip(SHAPES, names, strict=True):
        if shape.object_count == 1:
            known, new = next(words), next(words)
            colour = next(colours) if shape.has_colour else None
            trained = tuple(word for word in OBJECTS if word != new)
            templates.append(Template(colour, shape.link, name, trained, (known, new)))
    return tuple(templates)


def deal_names(rng: np.random.Generator, *places: list[str]) -> list[tuple[str, str]]:
    """A name for every shape, with words of the lengths that it asks for, out of 24 first and 24 second words."""
    first, second = (
        {length: shuffle(rng, [word for word in words if len(word) == length]) for length in NAME_LENGTHS}
        for words in places
    )
    return [(first[one].pop(), second[other].pop()) for one, other in (shape.name_lengths for shape in SHAPES)]


def deal(rng: np.random.Generator, names: list[tuple[str, str]], taken: set[Pair], avoid: list[set[str]]) -> Half:
    """A half of a group: every shape, object and colour once.

    Args:
      rng: shuffles objects and colours.
      names: one a shape.
      taken: pairs of objects that other prompts name, not to be used again; the new ones are added.
      avoid: objects that each caption must not name.
    """
    colours = iter(shuffle(rng, COLOURS))
    while True:  # one shuffle in seven keeps to `taken` and `avoid`
        words = iter(shuffle(rng, OBJECTS))
        objects = [tuple(next(words) for _ in range(shape.object_count)) for shape in SHAPES]
        pairs = {frozenset(some) for some in objects if len(some) == 2}
        if not pairs & taken and not any(set(some) & bad for some, bad in zip(objects, avoid, strict=True)):
            break
    taken |= pairs
    return tuple(
        Caption(some, next(colours) if shape.has_colour else None, shape.link, name)
        for shape, some, name in zip(SHAPES, objects, names, strict=True)
    )


def shuffle(rng: np.random.Generator, words: Iterable[str]) -> list[str]:
    """The words in random order."""
    return [str(word) for word in rng.permutation(list(words))]


def choice(rng: np.random.Generator, items: tuple[Item, ...]) -> Item:
    """One of the items."""
    return items[int(rng.integers(len(items)))]
