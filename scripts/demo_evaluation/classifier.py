"""The classifier that tells which objects a picture shows: its training, and the share that it finds."""

from pathlib import Path

import numpy as np
import optax
from demo_data import DemoData
from demo_data.grammar import OBJECTS
from demo_model.stage import run_stage
from flax import nnx
from jax import Array

from memattn_jax.demo.objects import Classifier, recognised

WORDS = sorted(OBJECTS)


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

    model = Classifier(len(WORDS), rngs=nnx.Rngs(5))
    return run_stage(folder, model, loss, Labelled(data), rate=2e-3, steps=steps, batch_size=64)


def objects_found(model: Classifier, pictures: np.ndarray, named: list[tuple[str, ...]]) -> float:
    """Share of all objects that captions name that are found in their pictures, uint8 [n, 64, 64, 3]."""
    return float(np.average(recognised(model, WORDS, pictures, named), weights=list(map(len, named))))
