"""Sprites in the place of the emoji, which a test does not download."""

import io

from demo_data.grammar import OBJECTS
from PIL import Image, ImageDraw


def disc(colour: tuple[int, int, int]) -> Image.Image:
    """A sprite: a disc of 60 pixels within transparent corners."""
    sprite = Image.new("RGBA", (60, 60))
    ImageDraw.Draw(sprite).ellipse((0, 0, 59, 59), fill=colour)
    return sprite


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "png")
    return file.getvalue()


def fake_sprites() -> dict[str, Image.Image]:
    """Discs with a bar, all different."""
    found = {}
    for number, word in enumerate(OBJECTS):
        found[word] = disc((7 * number, 255 - 7 * number, number % 2 * 255))
        ImageDraw.Draw(found[word]).rectangle((10, number, 50, number + 15), fill=(255 - 7 * number, 7 * number, 0))
    return found
