"""Whether an image of the built-in model shows the objects of its prompt: a small classifier, trained on renderings.

`scripts/train_objects.py` makes objects.safetensors.
"""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from memattn_jax.demo import FOLDER

FILE = FOLDER / "objects.safetensors"
WIDTHS = (3, 24, 48, 96, 192)


class Classifier(nnx.Module):
    """Strided convolutions to a logit for each object."""

    def __init__(self, objects: int, *, rngs: nnx.Rngs):
        self.convs = nnx.List(nnx.Conv(a, b, (3, 3), strides=2, rngs=rngs) for a, b in pairwise(WIDTHS))
        self.norms = nnx.List(nnx.GroupNorm(width, 8, rngs=rngs) for width in WIDTHS[1:])
        self.out = nnx.Linear(WIDTHS[-1], objects, rngs=rngs)

    def __call__(self, images: Array) -> Array:
        """uint8 [batch, 64, 64, 3] to logits, float32 [batch, objects]."""
        hidden = images.astype(jnp.float32) / 127.5 - 1
        for conv, norm in zip(self.convs, self.norms, strict=True):
            hidden = jax.nn.silu(norm(conv(hidden)))
        return self.out(hidden.max(axis=(1, 2)))


def recognised(model: Classifier, words: Sequence[str], images: np.ndarray, objects: list[Any]) -> np.ndarray:
    """Share of each image's named objects that are among its likeliest, as many as are named, float64 [n].

    Args:
      model: the classifier.
      words: of its logits.
      images: uint8 [n, 64, 64, 3].
      objects: the words of each image's caption; one without any gives NaN.
    """
    logits = np.asarray(jax.jit(lambda model, x: model(x))(model, jnp.asarray(images)))
    order = np.argsort(-logits, axis=1)
    hits = [[words[place] in named for place in row[: len(named)]] for row, named in zip(order, objects, strict=True)]
    return np.array([np.mean(each) if each else np.nan for each in hits])


def save_classifier(path: Path, model: Classifier, words: Sequence[str]) -> None:
    """Writes the classifier in half precision, with its words."""
    from safetensors.numpy import save_file

    tensors = {
        ".".join(map(str, name)): np.asarray(value[...], np.float16)
        for name, value in nnx.to_flat_state(nnx.state(model))
    }
    save_file(tensors, path, metadata={"objects": json.dumps(list(words))})


class ObjectsFound:
    """Fidelity of the built-in model's images: the share of the prompt's objects that they show."""

    def __init__(self, path: Path = FILE):
        """Loads the classifier."""
        from safetensors import safe_open

        with safe_open(path, "numpy") as file:
            self.words = json.loads(file.metadata()["objects"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 -- no mapping
        self.model = Classifier(len(self.words), rngs=nnx.Rngs(0))
        state = nnx.state(self.model)
        for name, value in nnx.to_flat_state(state):
            value[...] = jnp.asarray(tensors[".".join(map(str, name))], jnp.float32)
        nnx.update(self.model, state)

    def __call__(self, images: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        """Images uint8 [n, 64, 64, 3] and their prompts to shares, float64 [n]."""
        named = [tuple(word for word in self.words if f" {word} " in f" {prompt} ") for prompt in prompts]
        return recognised(self.model, self.words, images, named)
