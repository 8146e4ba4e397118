"""SSCD as an embedding: a file's network and a preset."""

import hashlib
from functools import cached_property, partial
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jax import Array
from PIL import Image

from memattn_jax.copies.embedding import Measure
from memattn_jax.copies.resizing import resize_on_host
from memattn_jax.copies.sscd.loading import load_network
from memattn_jax.copies.sscd.network import SSCD
from memattn_jax.copies.sscd.presets import PRESETS, Preset, normalize, preprocess
from memattn_jax.errors import check_name


@partial(jax.jit, static_argnums=(0, 3, 4))
def describe(graph: nnx.GraphDef[SSCD], weights: nnx.State, pictures: Array, preset: Preset, prepared: bool) -> Array:
    """uint8 [n, h, w, 3], which the preset may have resized and cropped already, to unit vectors, float32 [n, d]."""
    with jax.default_matmul_precision("highest"):  # whatever the program that calls this has set
        return nnx.merge(graph, weights)((normalize if prepared else preprocess)(pictures, preset))


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
        return describe(self.graph, self.weights, pictures, self.preset, False)

    def prepare(self, picture: Image.Image) -> np.ndarray:
        """Resizes and crops a picture of any size on the host, to the bit as the device does; uint8 [h, w, 3]."""
        return resize_on_host(picture, *self.preset.window(picture.height, picture.width))

    def describe(self, prepared: np.ndarray) -> Array:
        """Prepared pictures, uint8 [n, h, w, 3], to unit vectors, float32 [n, d]."""
        return describe(self.graph, self.weights, prepared, self.preset, True)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the weights and of the preset: 32 hexadecimal digits."""
        digest = hashlib.blake2b(repr(self.preset).encode(), digest_size=16)
        for path, leaf in nnx.to_flat_state(self.weights):
            digest.update(f"{path} {leaf[...].shape}".encode())
            digest.update(np.ascontiguousarray(leaf[...]).data)
        return digest.hexdigest()


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
