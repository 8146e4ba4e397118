"""The rows of a batch, read from the arguments of a run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax import Array

from memattn_jax.diffusion.model import Model, check_seeds
from memattn_jax.diffusion.settings import Settings, as_list
from memattn_jax.errors import InputError


@dataclass(frozen=True)
class Rows:
    """The rows of a batch, each with all that it depends on.

    Attributes:
      prompts: the texts; empty where there are embeddings alone.
      negative: negative prompts.
      seeds: one a row.
      scales: of guidance, float32 [1 or calls, batch].
      noise: of unit variance, [batch, h, w, channels].
      embeddings: in place of the prompts', or None.
      negative_embeddings: in place of the negative prompts', or None.
    """

    prompts: tuple[str, ...]
    negative: tuple[str, ...]
    seeds: tuple[int, ...]
    scales: np.ndarray
    noise: Array
    embeddings: Any
    negative_embeddings: Any = None

    def take(self, rows: np.ndarray) -> "Rows":
        """Some rows, int [rows]."""

        def pick(values: tuple) -> tuple:
            return tuple(values[row] for row in rows) if values else ()

        given = (each if each is None else each[rows] for each in (self.embeddings, self.negative_embeddings))
        texts = (pick(self.prompts), pick(self.negative), pick(self.seeds))
        return Rows(*texts, self.scales[:, rows], self.noise[rows], *given)


def read_rows(model: Model, prompts: Sequence[str] | None, settings: Settings, calls: int) -> Rows:
    """The rows that the arguments describe; raises InputError where they are inconsistent."""
    prompts = (prompts,) if isinstance(prompts, str) else tuple(() if prompts is None else prompts)
    given = settings.embeddings
    if given is not None and np.ndim(given) != 3:
        raise InputError(f"embeddings have shape {np.shape(given)}; expected [batch, tokens, channels]")
    batch = len(prompts) if given is None else len(given)
    if not batch:
        raise InputError("no prompts; expected at least one")
    if prompts and len(prompts) != batch:
        raise InputError(f"{len(prompts)} prompts for {batch} rows of embeddings; expected one per row, or none")
    seeds = check_seeds(as_list(settings.seeds, batch, "seeds"))
    given_negative = "" if settings.negative_prompts is None else settings.negative_prompts
    negative = as_list(given_negative, batch, "negative prompts")
    size = (settings.height, settings.width)
    if settings.latents is None:
        noise = model.noise(seeds, *size)
    else:
        noise = model.check_latents(settings.latents, batch, *size)
    scales = settings.scales(calls, batch)
    return Rows(prompts, tuple(negative), seeds, scales, noise, given, read_negative_embeddings(settings, batch))


def read_negative_embeddings(settings: Settings, batch: int) -> np.ndarray | None:
    """Those given, one a row; raises InputError for another shape, or beside negative prompts."""
    if settings.negative_embeddings is None:
        return None
    if settings.negative_prompts is not None:
        raise InputError("negative_prompts and negative_embeddings are mutually exclusive")
    given = np.asarray(settings.negative_embeddings)
    if given.ndim != 3 or len(given) not in (1, batch):
        raise InputError(f"negative_embeddings have shape {given.shape}; expected [1 or {batch}, tokens, channels]")
    return np.broadcast_to(given, (batch, *given.shape[1:]))
