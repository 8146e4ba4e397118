"""Writes the demo data: prompts in groups, the pictures to be memorized, and training pictures if asked for.

    python scripts/make_demo_data.py demo-data --cache ~/.cache/demo-emoji --train 2000

    demo-data/
      prompts/{memorized,control,unseen,decoys}_{choose,report}.txt    24 prompts each, a line each
      prompts/clean.txt                                                400 more of the same grammar, never trained on
      prompts/paraphrases.json                                         other wordings of the memorized prompts
      prompts/truth.csv                                                every prompt: group, half, how often it was shown
      memorized/*.png  metadata.jsonl                                  the fixed pictures; {"file_name", "text"} a line
      ladder/*.png  metadata.jsonl                                     those of the ladder, from the lowest rung up
      template/*.png  metadata.jsonl                                   two of each template: a known object, a new one
      train/*.png  metadata.jsonl                                      with --train N: the first N training examples
      vocabulary.json                                                  all words that captions can have
      contact_sheet.png                                                samples of every group

`demo_data/__init__.py` tells what the groups are for. A trainer needs no folder,
`DemoData(load_sprites(cache)).example(i)` is any training example. The emoji come from an npm package, which is
downloaded once into the cache and verified.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from demo_data import HALVES, PROMPT_GROUPS, DemoData, load_sprites
from demo_data.contact_sheet import contact_sheet
from demo_data.grammar import LINKS
from demo_data.truth import rows, write_truth
from PIL import Image
from tqdm import tqdm

from memattn_jax.errors import InputError


def write_demo_data(data: DemoData, out: Path, train: int) -> None:
    """Writes everything into a new or empty folder.

    Raises:
      InputError: the folder holds something; pictures of another run would mix with these.
    """
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        raise InputError(f"{out}: is not empty; give a new folder")
    write_prompts(data, out / "prompts")
    write_fixed(data, out)
    if train:
        examples = (data.example(index) for index in tqdm(range(train), desc="train", disable=None))
        write_imagefolder(out / "train", ((example.picture, example.caption) for example in examples))
    vocabulary = json.dumps(data.groups.vocabulary(), indent=1)
    (out / "vocabulary.json").write_text(vocabulary + "\n", encoding="utf-8")
    contact_sheet(data).save(out / "contact_sheet.png")


CLEAN = 400  # prompts for thresholds: enough that a false-positive rate of 1 % is 4 of them


def write_prompts(data: DemoData, folder: Path, counts: Mapping[str, int] | None = None) -> None:
    """Writes each half of each group as a text file, a prompt a line, clean.txt with captions of the stream, truth.csv.

    paraphrases.json has the memorized prompts with each of the other links.

    Args:
      data: the prompts.
      folder: made if missing.
      counts: how often a training run showed each caption, for truth.csv.
    """
    folder.mkdir(exist_ok=True)
    groups = data.groups
    clean = [groups.stream_caption(np.random.default_rng([CLEAN, number])).text for number in range(CLEAN)]
    (folder / "clean.txt").write_text("".join(f"{text}\n" for text in clean), encoding="utf-8")
    for group in PROMPT_GROUPS:
        for half in HALVES:
            lines = [caption.text + "\n" for caption in groups.halves[group, half]]
            (folder / f"{group}_{half}.txt").write_text("".join(lines), encoding="utf-8")
    memorized = [caption for half in HALVES for caption in groups.halves["memorized", half]]
    others = {one.text: [replace(one, link=link).text for link in LINKS if link != one.link] for one in memorized}
    (folder / "paraphrases.json").write_text(json.dumps(others, indent=1) + "\n", encoding="utf-8")
    write_truth(data, folder / "truth.csv", counts)


def write_fixed(data: DemoData, out: Path) -> None:
    """Writes the captions that have one picture, with it: memorized/, ladder/ and template/."""
    pairs: dict[str, list[tuple[np.ndarray, str]]] = {}
    for row in rows(data):
        if row.picture is not None:
            pairs.setdefault(row.group, []).append((row.picture, row.caption.text))
    for group, some in pairs.items():
        write_imagefolder(out / group, some)


def write_imagefolder(folder: Path, pairs: Iterable[tuple[np.ndarray, str]]) -> None:
    """Writes pictures, uint8 [height, width, 3], as numbered PNGs, and their captions as metadata.jsonl."""
    folder.mkdir(exist_ok=True)
    with (folder / "metadata.jsonl").open("w", encoding="utf-8") as metadata:
        for number, (picture, text) in enumerate(pairs):
            name = f"{number:06}.png"
            Image.fromarray(picture).save(folder / name)
            metadata.write(json.dumps({"file_name": name, "text": text}) + "\n")


def count(text: str) -> int:
    """A number of pictures or a seed, for argparse."""
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more")
    return int(text)


def main(arguments: list[str]) -> int:
    """Runs the command; returns its exit status, 2 for what the user got wrong."""
    parser = argparse.ArgumentParser(description="Writes the demo data: prompts in four groups, and pictures.")
    parser.add_argument("out", type=Path, help="new folder to write to")
    parser.add_argument("--cache", type=Path, required=True, help="folder where the emoji package is kept (74 MB)")
    parser.add_argument("--train", type=count, default=0, metavar="N", help="also write the first N training examples")
    parser.add_argument("--seed", type=count, default=0, help="another seed deals other words and draws other pictures")
    options = parser.parse_args(arguments)
    try:
        write_demo_data(DemoData(load_sprites(options.cache), options.seed), options.out, options.train)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"the demo data in {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
