"""Does the heatmap of an object's word cover the object? The pointing game on scenes whose layout is known.

    python scripts/measure_pointing_game.py --cache ~/.cache/demo-emoji

Scenes are drawn anew for each caption of the reported half, as training draws them; those of memorized captions are the
memorized pictures. A scene is encoded, noise is added at five levels, and the heatmap of the object's word is the mean
over levels, layers and heads, as `Samples.heatmap` makes it of a run's steps. It is compared with the object's pixels,
and with the heatmap of another word of the same caption, drawn at random. Prints Markdown tables.

The pointing game is Zhang et al.'s (ECCV 2016, arXiv 1608.00507, section 5.1), without a tolerance around the object.
"""

import argparse
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from demo_data import DemoData, load_sprites
from demo_data.grammar import Caption
from demo_data.randomness import Purpose, generator
from demo_data.scenes import draw_scene
from demo_evaluation.separation import Share
from demo_evaluation.tables import percent, table
from jax import Array
from PIL import Image, ImageChops

from memattn_jax import demo
from memattn_jax.errors import InputError
from memattn_jax.evaluation.shares import bootstrap_interval, share_interval
from memattn_jax.heatmaps import picture_heatmap, token_mask
from memattn_jax.interceptors import Interceptor, MeanMaps
from memattn_jax.pipeline import StableDiffusion
from memattn_jax.report.figures.tokens import places_of
from memattn_jax.schedulers import SchedulerConfig, alphas_cumprod
from memattn_jax.training.objective import add_noise

TIMESTEPS = (100, 300, 500, 700, 900)
SCENES = 4  # of a caption that is not memorized
NOISES = 4  # of a memorized picture, so that both have as many heatmaps
BATCH = 16
HEADER = (
    "prompts",
    "captions",
    "covers better",
    "hits",
    "hits of another word",
    "object's area",
    "heat",
    "heat of another word",
)
GROUPS = {"control": "fresh scenes", "unseen": "fresh scenes", "memorized": "the memorized picture"}


class Scene(NamedTuple):
    """A picture with an object at a known place.

    Attributes:
      caption: what it shows.
      word: the object.
      picture: uint8 [64, 64, 3].
      mask: bool [64, 64], where the object can be seen.
      seed: of the noise.
    """

    caption: Caption
    word: str
    picture: np.ndarray
    mask: np.ndarray
    seed: int


class Score(NamedTuple):
    """How one heatmap of an object's word, and one of another word, cover the object.

    Attributes:
      hit: whether the heatmap is largest on the object.
      other_hit: the same of the other word.
      inside: mean heat on the object, divided by the mean over the picture.
      other_inside: the same of the other word.
      area: share of the picture that the object takes.
    """

    hit: bool
    other_hit: bool
    inside: float
    other_inside: float
    area: float


def inverted(sprite: Image.Image) -> Image.Image:
    """The sprite in other colours, with the same outline."""
    turned = ImageChops.invert(sprite.convert("RGB")).convert("RGBA")
    turned.putalpha(sprite.getchannel("A"))
    return turned


def draw(data: DemoData, caption: Caption, word: str, number: int, *, memorized: bool) -> Scene:
    """A scene of a caption, and where an object is: the pixels that change with the object's colours."""
    kind = Purpose.MEMORIZED if memorized else Purpose.FRESH
    place = data.groups.prompts("memorized").index(caption) if memorized else 0
    numbers = (place,) if memorized else (number, zlib.crc32(caption.text.encode()))
    sprites = (data.sprites, {**data.sprites, word: inverted(data.sprites[word])})
    picture, changed = (draw_scene(generator(data.seed, kind, *numbers), caption, some) for some in sprites)
    return Scene(caption, word, picture, (picture != changed).any(axis=-1), number)


def scenes_of(data: DemoData, group: str) -> list[Scene]:
    """The scenes of a group's reported half: every object of a caption in turn."""
    count = NOISES if group == "memorized" else SCENES
    return [
        draw(data, caption, caption.objects[number % len(caption.objects)], number, memorized=group == "memorized")
        for caption in data.groups.halves[group, "report"]
        for number in range(count)
    ]


@jax.jit
def look(networks: tuple, pictures: Array, context: Array, noise: Array, signal: Array, timestep: Array) -> dict:
    """The maps of one noise level, [batch, heads, pixels, tokens] by site."""
    unet, vae = networks
    latents = vae.encode(pictures.astype(jnp.float32) / 127.5 - 1).mean * vae.config.scaling_factor
    noisy = add_noise(latents, noise, jnp.full(len(noise), signal))
    return unet(noisy, timestep, context, Interceptor(taps={"maps": MeanMaps()}))[1]["maps"]


def maps_of(sd: StableDiffusion, scenes: Sequence[Scene]) -> dict[str, np.ndarray]:
    """Maps of a batch of scenes at every noise level, [levels, batch, 1, pixels, tokens] by site."""
    context, _ = sd.encode([scene.caption.text for scene in scenes])
    pictures = np.stack([scene.picture for scene in scenes])
    noise = sd.noise([scene.seed for scene in scenes])
    signals = alphas_cumprod(SchedulerConfig.from_json(sd.scheduler_config, "ddim"))
    levels = [
        look((sd.unet, sd.vae), pictures, context, noise, np.float32(signals[time]), np.float32(time))
        for time in TIMESTEPS
    ]
    return {site: np.stack([np.asarray(level[site]) for level in levels]) for site in sd.sites}


def heat_of(maps: dict[str, np.ndarray], row: int, places: Sequence[int]) -> np.ndarray:
    """The heatmap of some tokens of a scene, float32 [64, 64]."""
    own = {site: values[:, row : row + 1] for site, values in maps.items()}
    tokens = token_mask(places, np.array([1]), own[next(iter(own))].shape[-1])
    return picture_heatmap(own, tokens, (16, 16), (64, 64))[0]


def score(sd: StableDiffusion, maps: dict[str, np.ndarray], row: int, scene: Scene) -> Score:
    """Of one scene; the other word is none of the caption's objects."""
    tokens = sd.tokenizer([scene.caption.text])
    ids = tokens.input_ids[0, : int(tokens.lengths[0])]
    own = places_of(sd.tokenizer, ids, scene.word)[0]
    objects = [place for word in scene.caption.objects for place in places_of(sd.tokenizer, ids, word)[0]]
    others = [place for place in range(1, len(ids) - 1) if place not in objects]
    rng = np.random.default_rng((scene.seed, zlib.crc32(scene.caption.text.encode())))
    heats = heat_of(maps, row, own), heat_of(maps, row, [int(rng.choice(others))])
    hits = [bool(scene.mask[np.unravel_index(heat.argmax(), heat.shape)]) for heat in heats]
    inside = [float(heat[scene.mask].mean() / heat.mean()) for heat in heats]
    return Score(hits[0], hits[1], inside[0], inside[1], float(scene.mask.mean()))


def measure(sd: StableDiffusion, scenes: Sequence[Scene]) -> list[Score]:
    """Scores of all scenes, whose number is a multiple of the batch."""
    scores = []
    for first in range(0, len(scenes), BATCH):
        batch = scenes[first : first + BATCH]
        maps = maps_of(sd, batch)
        scores += [score(sd, maps, row, scene) for row, scene in enumerate(batch)]
    return scores


def row_of(group: str, scores: Sequence[Score]) -> list[object]:
    """A group's line of the table; a caption is one trial, whatever the number of its scenes."""
    values = {name: np.array([getattr(each, name) for each in scores], float) for name in Score._fields}
    trials = len(scores) // SCENES

    def share(hits: np.ndarray) -> Share:
        mean = float(np.mean(hits))
        return Share(mean, *share_interval(mean, trials))

    def ratio(inside: np.ndarray) -> str:
        by_caption = inside.reshape(trials, SCENES).mean(axis=1)
        low, high = bootstrap_interval(lambda x: float(np.mean(x)), by_caption)
        return f"{inside.mean():.2f} [{low:.2f}, {high:.2f}]"

    wins = share(values["inside"] > values["other_inside"])
    hits = [share(values[name]) for name in ("hit", "other_hit")]
    ratios = ratio(values["inside"]), ratio(values["other_inside"])
    return [group, trials, wins, *hits, percent(values["area"].mean()), *ratios]


def main(arguments: list[str]) -> int:
    """Runs the command; returns its exit status, 2 for what the user got wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="folder where the emoji package is kept (74 MB)")
    options = parser.parse_args(arguments)
    try:
        data = DemoData(load_sprites(options.cache))
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    sd = StableDiffusion.from_pretrained(demo.MODEL, "float32")
    rows = [row_of(f"{group}: {what}", measure(sd, scenes_of(data, group))) for group, what in GROUPS.items()]
    print(table(HEADER, rows), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
