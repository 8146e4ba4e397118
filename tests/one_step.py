"""One training step of the smallest model, from pictures and captions that are always the same."""

import dataclasses

import jax
import numpy as np
import optax

from memattn_jax.training.settings import TrainSettings
from memattn_jax.training.start import start
from memattn_jax.training.step import Batch, train_step

ROWS = 4
SETTINGS = TrainSettings(batch_size=ROWS, learning_rate=1e-3, dropout=0.3, weight_decay=0.1, gradient_clip=0.5)


def batch(sd) -> Batch:
    pictures = np.random.default_rng(0).integers(0, 255, (ROWS, 8, 8, 3), dtype=np.uint8)
    return Batch(pictures, sd.tokenizer(["the a", "the b", "c", "hat"]).input_ids)


def step(sd, settings: TrainSettings, gate=None, **changes):
    state, setup = start(sd, settings, gate)
    return train_step(state, dataclasses.replace(setup, **changes), batch(sd)), setup


def gradients(state):
    """The clipped gradient of the first step, which Adam's first moment holds times 0.1.

    It is compared rather than the parameters: Adam divides each entry by its own size, noise or not.
    """
    return jax.tree.map(lambda moment: moment / 0.1, optax.tree.get(state.optimizer, "mu"))
