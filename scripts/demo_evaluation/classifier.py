"""Which objects a picture shows, by a small network trained on renderings."""

from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from demo_data import DemoData
from demo_data.grammar import OBJECTS
from demo_model.autoencoder import to_values
from demo_model.stage import run_stage
from flax import nnx
from jax import Array

WORDS = sorted(OBJECTS)
WIDTHS = (3, 24, 48, 96, 192)


class Classifier(nnx.Module):
    """Strided convolutions to a logit for each object."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.convs = nnx.List(nnx.Conv(a, b, (3, 3), strides=2, rngs=rngs) for a, b in pairwise(WIDTHS))
        self.norms = nnx.List(nnx.GroupNorm(width, 8, rngs=rngs) for width in WIDTHS[1:])
        self.out = nnx.Linear(WIDTHS[-1], len(WORDS), rngs=rngs)

    def __call__(self, pictures: Array) -> Array:
        """uint8 [batch, 64, 64, 3] to logits, float32 [batch, objects]."""
        hidden = to_values(pictures)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            hidden = jax.nn.silu(norm(conv(hidden)))
        return self.out(hidden.max(axis=(1, 2)))


class Labelled:
    """Renderings of the stream's captions with the objects they show, for grain; no memorized or control picture."""

    def __init__(self, data: DemoData):
        self.data = data

    def __len__(self) -> int:
        return 10_000_000

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        caption = self.data.groups.stream_caption(np.random.default_rng(index))
        shown = np.isin(WORDS, caption.objects).astype(np.float32)
        return {"pictures": self.data.fresh_picture(caption, index), "shown": shown}


def train_classifier(folder: Path, data: DemoData, steps: int) -> Classifier:
    """Trains to `steps`, from the newest checkpoint in `folder`."""

    def loss(model: Classifier, batch: dict[str, Array], number: Array) -> Array:
        return optax.losses.sigmoid_binary_cross_entropy(model(batch["pictures"]), batch["shown"]).sum(-1).mean()

    model = Classifier(rngs=nnx.Rngs(5))
    return run_stage(folder, model, loss, Labelled(data), rate=2e-3, steps=steps, batch_size=64)


def recognised(model: Classifier, pictures: np.ndarray, objects: list[tuple[str, ...]]) -> float:
    """Share of the named objects that are among a picture's likeliest, as many as are named.

    Args:
      model: the classifier.
      pictures: uint8 [n, 64, 64, 3].
      objects: of each picture, its caption's words.
    """
    logits = np.asarray(jax.jit(lambda model, x: model(x))(model, jnp.asarray(pictures)))
    order = np.argsort(-logits, axis=1)
    hits = [WORDS[place] in named for row, named in zip(order, objects, strict=True) for place in row[: len(named)]]
    return float(np.mean(hits))
