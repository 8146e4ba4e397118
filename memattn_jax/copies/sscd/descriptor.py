"""SSCD as an embedding: a file's network and a preset."""

from functools import partial
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jax import Array

from memattn_jax.copies.embedding import Measure
from memattn_jax.copies.sscd.loading import load_network
from memattn_jax.copies.sscd.network import SSCD
from memattn_jax.copies.sscd.presets import PRESETS, Preset, preprocess
from memattn_jax.errors import check_name


@partial(jax.jit, static_argnums=(0, 3))
def describe(graph: nnx.GraphDef[SSCD], weights: nnx.State, pictures: Array, preset: Preset) -> Array:
    """uint8 [n, h, w, 3] to unit vectors, float32 [n, d]."""
    with jax.default_matmul_precision("highest"):  # whatever the program that calls this has set
        return nnx.merge(graph, weights)(preprocess(pictures, preset))


class Descriptor:
    """A network and a preset; what `embedding.embed` takes.

    Attributes:
      measure: names both.
    """

    def __init__(self, network: SSCD, model: str, preset: Preset | str):
        """Takes a network.

        Args:
          network: as `load_network` gives it.
          model: names the weights.
          preset: "official", "nemo", "wen" or "dcr", or one of your own.

        Raises:
          InputError: an unknown preset.
        """
        if isinstance(preset, str):
            check_name("preset", preset, PRESETS)
            preset = PRESETS[preset]
        self.preset, self.measure = preset, Measure(model, preset.name)
        self.graph, self.weights = nnx.split(network)

    def __call__(self, pictures: np.ndarray | Array) -> Array:
        """uint8 [n, h, w, 3] to unit vectors, float32 [n, d]."""
        return describe(self.graph, self.weights, pictures, self.preset)


def load_sscd(path: Path | str, preset: Preset | str) -> Descriptor:
    """SSCD from a file, named after it: `sscd_disc_mixup.torchscript.pt` is "sscd_disc_mixup".

    Args:
      path: see `loading.load_network`.
      preset: how pictures are prepared. There is no default, as papers differ and their numbers then do too.

    Raises:
      FileNotFoundError, InputError: see `loading.load_network`; or an unknown preset.
    """
    path = Path(path)
    return Descriptor(load_network(path), path.name.partition(".")[0], preset)
