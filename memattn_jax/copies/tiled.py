"""Carlini's distance of pictures: l2 in the worst of 16 tiles, so that a shared background alone makes no copy.

Source: Carlini et al., "Extracting Training Data from Diffusion Models" (arXiv 2301.13188), Definition 1 and section
4.2.1, as others quote them.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from memattn_jax.errors import InputError

TILES = 4  # along each axis


@partial(jax.jit, static_argnums=2)
def worst_tiles(pictures: Array, references: Array, tiles: int) -> Array:
    """See `tiled_distance`, whose shapes are checked."""
    count, height, width, channels = references.shape
    tiled = (count, tiles, height // tiles, tiles, width // tiles, channels)

    def distances(picture: Array) -> Array:
        difference = references.astype(jnp.float32) - picture.astype(jnp.float32)
        squares = (difference / 255) ** 2
        return jnp.sqrt(squares.reshape(tiled).mean(axis=(2, 4, 5)).max(axis=(1, 2)))

    return lax.map(distances, pictures)


def tiled_distance(pictures: np.ndarray, references: np.ndarray, tiles: int = TILES) -> np.ndarray:
    """Root of the mean squared difference, of values from 0 to 1, in the tile where it is largest.

    Args:
      pictures: uint8 [n, h, w, channels].
      references: uint8 [m, h, w, channels], on the device as a whole.
      tiles: along each axis; 4 are the paper's, of 128 × 128 pixels in pictures of 512 × 512.

    Returns:
      float32 [n, m], from 0 (the same picture) to 1.

    Raises:
      InputError: pictures of other sizes than the references, or that do not divide into tiles.
    """
    size, other = pictures.shape[1:], references.shape[1:]
    if size != other:
        raise InputError(f"pictures {list(size)} and references {list(other)}; expected the same size")
    if size[0] % tiles or size[1] % tiles:
        raise InputError(f"pictures of {size[0]} × {size[1]} do not divide into {tiles} × {tiles} tiles")
    return np.asarray(worst_tiles(pictures, references, tiles))
