"""The most similar of any number of references, exactly, with bounded memory."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from memattn_jax.copies.embedding import Embeddings, Similarities
from memattn_jax.errors import InputError

QUERIES = 1024  # compared at a time


@jax.jit
def better(best: Array, index: Array, queries: Array, references: Array, start: int, count: int) -> tuple[Array, Array]:
    """Updates the best similarity and its index with one block of references, of which the first `count` are real."""
    similarities = jnp.matmul(queries, references.T, precision="highest")
    similarities = jnp.where(jnp.arange(references.shape[0]) < count, similarities, -jnp.inf)
    found = similarities.argmax(axis=1)  # the first of several
    largest = jnp.take_along_axis(similarities, found[:, None], axis=1)[:, 0]
    return jnp.maximum(best, largest), jnp.where(largest > best, start + found, index)


def nearest(pictures: Embeddings, references: Embeddings, block: int = 2**15) -> Similarities:
    """The most similar reference of each picture, and the first of several.

    Args:
      pictures: [n, d].
      references: [m, d], which may be a mapped file; of these, a block at a time goes to the device.
      block: references in a block.

    Returns:
      Similarities of n pictures: the inner products of vectors, cosines where these have length 1.

    Raises:
      InputError: no references, or the two were not measured alike.
    """
    if pictures.measure != references.measure:
        raise InputError(f"cannot compare embeddings of {pictures.measure} with those of {references.measure}")
    total = len(references.vectors)
    if total == 0:
        raise InputError("no references to compare with; expected at least one")
    block = min(block, total)
    scores, indices = [], []
    for first in range(0, len(pictures.vectors), QUERIES):
        queries = jnp.asarray(pictures.vectors[first : first + QUERIES])
        best, index = jnp.full(len(queries), -jnp.inf), jnp.zeros(len(queries), jnp.int32)
        for start in range(0, total, block):
            some = np.asarray(references.vectors[start : start + block], np.float32)
            count = len(some)
            some = np.pad(some, ((0, block - count), (0, 0)))  # so that one program serves the last block too
            best, index = better(best, index, queries, some, start, count)
        scores.append(np.asarray(best))
        indices.append(np.asarray(index))
    if not scores:
        return Similarities(np.empty(0, np.float32), np.empty(0, np.int32), pictures.measure)
    return Similarities(np.concatenate(scores), np.concatenate(indices), pictures.measure)
