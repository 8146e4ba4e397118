"""The most similar of any number of references, exactly, with bounded memory."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from memattn_jax.copies.embedding import Embeddings, Similarities
from memattn_jax.errors import InputError

QUERIES = 1024  # compared at a time
BLOCK = 2**15  # references that they are compared with at a time


@partial(jax.jit, donate_argnums=(0, 1))
def better(best: Array, index: Array, queries: Array, references: Array, start: int, count: int) -> tuple[Array, Array]:
    """Updates the best similarities and their indices, [n, k], with a block of references, the first `count` real."""
    similarities = jnp.matmul(queries, references.T, precision="highest")
    similarities = jnp.where(jnp.arange(references.shape[0]) < count, similarities, -jnp.inf)
    largest, found = lax.top_k(similarities, best.shape[1])  # of equal ones the first
    joined, indices = jnp.concatenate([best, largest], axis=1), jnp.concatenate([index, start + found], axis=1)
    largest, places = lax.top_k(joined, best.shape[1])
    return largest, jnp.take_along_axis(indices, places, axis=1)


def nearest(pictures: Embeddings, references: Embeddings, block: int = BLOCK) -> Similarities:
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
    found = ranked(pictures, references, 1, block)
    return Similarities(found.scores[:, 0], found.index[:, 0], found.measure)


def ranked(
    pictures: Embeddings, references: Embeddings, count: int, block: int = BLOCK, rows: np.ndarray | None = None
) -> Similarities:
    """The `count` most similar references of each picture, [n, count], the most similar first; see `nearest`.

    Args:
      pictures: [n, d].
      references: [m, d].
      count: at most m.
      block: references in a block, at least `count`.
      rows: int [r], which references to compare with, and what the index then counts; None is all of them.

    Raises:
      InputError: fewer references than `count`, or the two were not measured alike.
    """
    if pictures.measure != references.measure:
        raise InputError(f"cannot compare embeddings of {pictures.measure} with those of {references.measure}")
    total = len(references.vectors) if rows is None else len(rows)
    if total < count:
        raise InputError(f"{total} references to compare with; expected at least {count}")
    block = min(block, total)
    scores, indices = [], []
    for first in range(0, len(pictures.vectors), QUERIES):
        queries = jnp.asarray(pictures.vectors[first : first + QUERIES], jnp.float32)
        best = jnp.full((len(queries), count), -jnp.inf, jnp.float32)
        index = jnp.zeros((len(queries), count), jnp.int32)
        for start in range(0, total, block):
            part = slice(start, start + block)
            some = np.asarray(references.vectors[part if rows is None else rows[part]], np.float32)
            real = len(some)
            some = np.pad(some, ((0, block - real), (0, 0)))  # so that one program serves the last block too
            best, index = better(best, index, queries, some, start, real)
        scores.append(np.asarray(best))
        indices.append(np.asarray(index))
    if not scores:
        return Similarities(np.empty((0, count), np.float32), np.empty((0, count), np.int32), pictures.measure)
    return Similarities(np.concatenate(scores), np.concatenate(indices), pictures.measure)
