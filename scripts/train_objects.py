"""Trains the classifier that `memattn_jax/demo/objects.safetensors` holds: which objects an image of the demo shows.

    python scripts/train_objects.py objects --cache ~/.cache/demo-emoji

objects/ receives checkpoints and objects.safetensors. The same command goes on where it stopped.
"""

import argparse
import sys
from pathlib import Path

from demo_data import DemoData, load_sprites
from demo_evaluation.classifier import WORDS, train_classifier

from memattn_jax.demo.objects import save_classifier
from memattn_jax.errors import InputError


def main(arguments: list[str]) -> int:
    """Runs the command; returns its exit status, 2 for what the user got wrong."""
    parser = argparse.ArgumentParser(description="Trains the classifier of the demo's objects.")
    parser.add_argument("out", type=Path, help="folder for checkpoints and the file")
    parser.add_argument("--cache", type=Path, required=True, help="folder where the emoji package is kept (74 MB)")
    parser.add_argument("--seed", type=int, default=0, help="of the data")
    parser.add_argument("--steps", type=int, default=2_000)
    options = parser.parse_args(arguments)
    try:
        data = DemoData(load_sprites(options.cache), options.seed)
        model = train_classifier(options.out / "checkpoints", data, options.steps)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    save_classifier(options.out / "objects.safetensors", model, WORDS)
    print(f"the classifier is in {options.out / 'objects.safetensors'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
