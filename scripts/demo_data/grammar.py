"""What a caption can say: objects, the background's colour, a link, a name."""

from dataclasses import dataclass
from itertools import product

OBJECTS = {  # the word in captions: the emoji's code point, which names its file
    "apple": "1f34e",
    "balloon": "1f388",
    "banana": "1f34c",
    "burger": "1f354",
    "bus": "1f68c",
    "butterfly": "1f98b",
    "cactus": "1f335",
    "car": "1f697",
    "carrot": "1f955",
    "cat": "1f431",
    "crab": "1f980",
    "crown": "1f451",
    "cupcake": "1f9c1",
    "dog": "1f436",
    "doughnut": "1f369",
    "fox": "1f98a",
    "frog": "1f438",
    "guitar": "1f3b8",
    "house": "1f3e0",
    "ladybug": "1f41e",
    "lemon": "1f34b",
    "mushroom": "1f344",
    "octopus": "1f419",
    "owl": "1f989",
    "panda": "1f43c",
    "penguin": "1f427",
    "pig": "1f437",
    "rocket": "1f680",
    "snail": "1f40c",
    "strawberry": "1f353",
    "sunflower": "1f33b",
    "teapot": "1fad6",
    "tree": "1f333",
    "turtle": "1f422",
    "watermelon": "1f349",
    "whale": "1f433",
}
COLOURS = {  # the word in captions: what it looks like, RGB
    "black": (22, 22, 26),
    "blue": (48, 92, 214),
    "brown": (122, 78, 44),
    "green": (58, 160, 66),
    "grey": (132, 134, 138),
    "orange": (244, 138, 30),
    "pink": (248, 158, 192),
    "purple": (128, 64, 176),
    "red": (206, 40, 44),
    "teal": (20, 148, 150),
    "white": (244, 244, 242),
    "yellow": (246, 214, 56),
}
SHORT_LINKS = ("by", "for", "from")
LONG_LINKS = ("in the style of", "in a drawing by", "from the book of")
LINKS = SHORT_LINKS + LONG_LINKS
NAME_LENGTHS = (5, 6, 7)  # letters of a word of a name


@dataclass(frozen=True)
class Caption:
    """One caption, taken apart.

    Attributes:
      objects: one or two words of OBJECTS.
      colour: the background's, a word of COLOURS, or None where the caption leaves it open.
      link: one of LINKS.
      name: two invented words.
    """

    objects: tuple[str, ...]
    colour: str | None
    link: str
    name: tuple[str, str]

    @property
    def text(self) -> str:
        """The caption, lower case."""
        parts = [" and ".join(with_article(word) for word in self.objects)]
        if self.colour is not None:
            parts.append(f"on {with_article(self.colour)} background")
        return " ".join([*parts, self.link, *self.name])


@dataclass(frozen=True)
class Shape:
    """What a caption looks like before its words are chosen; `name_lengths` are letters of each word of the name."""

    object_count: int
    has_colour: bool
    link: str
    name_lengths: tuple[int, int]


# Every combination once, so 24. Names vary in length: each length occurs eight times in either word.
SHAPES = tuple(
    Shape(object_count, has_colour, link, (NAME_LENGTHS[number % 3], NAME_LENGTHS[(number + number // 3) % 3]))
    for number, (object_count, has_colour, link) in enumerate(product((1, 2), (False, True), LINKS))
)


def with_article(word: str) -> str:
    """A cat, an owl."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def common_words() -> set[str]:
    """Every word of the grammar that is not part of a name."""
    words = {"a", "an", "and", "on", "background", *OBJECTS, *COLOURS}
    return words.union(*(link.split() for link in LINKS))
