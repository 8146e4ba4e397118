"""From a caption to a picture."""

from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageOps

from demo_data.grammar import COLOURS, Caption

SIZE = 64
SINGLE = (30, 54)  # longest side of an object that is alone, least and most, in pixels
DOUBLE = (26, 34)  # and of each of two
TILT = 35.0  # degrees, at most
Sprites = Mapping[str, Image.Image]

CENTRES = np.array(list(COLOURS.values()), np.float32)
ACROSS, DOWN = np.meshgrid(np.linspace(-1, 1, SIZE, dtype=np.float32), np.linspace(-1, 1, SIZE, dtype=np.float32))


def draw_scene(rng: np.random.Generator, caption: Caption, sprites: Sprites) -> np.ndarray:
    """Draws a caption, everything that it leaves open at random.

    Args:
      rng: decides all of it; the name in the caption decides nothing.
      caption: what to draw.
      sprites: {object: RGBA picture}.

    Returns:
      uint8 [64, 64, 3], read-only.
    """
    scene = Image.fromarray(background(rng, caption.colour)).convert("RGBA")
    least, most = SINGLE if len(caption.objects) == 1 else DOUBLE
    sides = rng.integers(least, most + 1, len(caption.objects))
    for word, side, centre in zip(caption.objects, sides, places(rng, sides), strict=True):
        sprite = ImageOps.contain(sprites[word], (int(side), int(side)), Image.Resampling.LANCZOS)
        if rng.random() < 0.5:
            sprite = ImageOps.mirror(sprite)
        sprite = sprite.rotate(rng.uniform(-TILT, TILT), Image.Resampling.BICUBIC, expand=True)
        left, top = (round(float(at) - length / 2) for at, length in zip(centre, sprite.size, strict=True))
        scene.paste(sprite, (left, top), sprite)
    return np.asarray(scene.convert("RGB"))


def places(rng: np.random.Generator, sides: np.ndarray) -> np.ndarray:
    """Centres of the objects, float [objects, 2], inside the picture and apart from each other."""
    while True:  # two objects need about four attempts
        centres = rng.uniform(sides[:, None] / 2, SIZE - sides[:, None] / 2, (len(sides), 2))
        if len(sides) == 1 or np.linalg.norm(centres[0] - centres[1]) > 0.48 * sides.sum():
            return centres


def background(rng: np.random.Generator, colour: str | None) -> np.ndarray:
    """Two colours that blend along a line, from a centre, at an edge or in stripes; uint8 [64, 64, 3]."""
    first, second = two_colours(rng, colour)
    angle = rng.uniform(0, 2 * np.pi)
    along = np.cos(angle, dtype=np.float32) * ACROSS + np.sin(angle, dtype=np.float32) * DOWN
    match rng.integers(4):
        case 0:
            blend = 0.5 + along / 2.8
        case 1:
            blend = np.hypot(ACROSS - rng.uniform(-0.6, 0.6), DOWN - rng.uniform(-0.6, 0.6)) / 1.6
        case 2:
            blend = 0.5 + 8 * (along - rng.uniform(-0.4, 0.4))
        case _:
            blend = 0.5 + 0.5 * np.sin(rng.uniform(4, 10) * along + angle)
    blend = np.clip(blend, 0, 1)[..., None]
    return np.round(first + blend * (second - first)).astype(np.uint8)


def two_colours(rng: np.random.Generator, colour: str | None) -> np.ndarray:
    """A lighter and a darker shade of a named colour, or any two; float32 [2, 3] in 0…255.

    Two equal shades would make a flat background, and pictures on flat backgrounds of one colour correlate by more than
    0.9 whatever is on them: nobody could tell them from a memorized one by that.
    """
    if colour is None:
        one, other = CENTRES[rng.integers(len(CENTRES), size=(2, 2))]
        centres = one + rng.random((2, 1)) * (other - one)
        lighter = rng.uniform(-0.25, 0.25, (2, 1))
    else:
        centres = np.array(COLOURS[colour])
        lighter = rng.permutation([[-1], [1]]) * rng.uniform(0.1, 0.3, (2, 1))
    shades = centres + np.abs(lighter) * (np.where(lighter > 0, 255, 0) - centres) + rng.normal(0, 6, (2, 3))
    return np.clip(shades, 0, 255).astype(np.float32)
