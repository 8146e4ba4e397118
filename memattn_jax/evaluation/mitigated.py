"""What a mitigation does to memorized and to clean prompts: samples on equal seeds, and what is measured on them.

sample_prompts    images of every prompt and seed, with forward passes, seconds and memory
describe          copies, agreement between seeds, fidelity to the prompt, change to clean images
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from memattn_jax.copies.correlation import REPRODUCED, normalized_correlation
from memattn_jax.copies.embedding import Embedding, embed
from memattn_jax.diffusion.mitigation import Mitigation
from memattn_jax.diffusion.model import Model
from memattn_jax.diffusion.run import memory_of, sample
from memattn_jax.diffusion.settings import Settings
from memattn_jax.evaluation.shares import bootstrap_interval, frechet_distance, share_interval
from memattn_jax.mitigations import compose
from memattn_jax.mitigations.counting import CountForwards, Tally
from memattn_jax.sharding.placement import rows_multiple

CELLS = 4  # images are averaged to this many cells a side, for the distance of two sets of them

# images uint8 [n, height, width, 3] and their prompts to how well each follows its prompt, float [n] in [0, 1]
Fidelity = Callable[[np.ndarray, Sequence[str]], Any]


class Sampled(NamedTuple):
    """Images of prompts; the first two axes of arrays are prompts and seeds.

    Attributes:
      images: uint8 [prompts, seeds, height, width, 3].
      finite: bool [prompts, seeds].
      forwards: passes of the UNet an image, a derivative's among them.
      seconds: an image, compiled.
      memory: bytes of the compiled program's temporaries; None where the backend does not tell.
    """

    images: np.ndarray
    finite: np.ndarray
    forwards: float
    seconds: float
    memory: int | None


class Plain(NamedTuple):
    """What the model makes of prompts without a mitigation, on the same seeds; `Sampled` says what arrays are."""

    images: np.ndarray
    finite: np.ndarray


@dataclass(frozen=True)
class Prompts:
    """What is sampled.

    Attributes:
      memorized: the texts.
      clean: likewise.
      references: the training image of each memorized prompt, uint8 [prompts, height, width, 3]; None compares with
        what the model makes without a mitigation.
      kinds: of each memorized prompt, such as "template", or None; empty where all are unknown.
    """

    memorized: Sequence[str]
    clean: Sequence[str]
    references: np.ndarray | None = None
    kinds: Sequence[str | None] = ()


def sample_prompts(
    model: Model, prompts: Sequence[str], seeds: Sequence[int], mitigation: Mitigation, batch: int, run: dict[str, Any]
) -> Sampled:
    """Samples every prompt with every seed, in batches of one size; `run` are further settings of the run."""
    tally, rows = Tally(), [(prompt, seed) for prompt in prompts for seed in seeds]
    counted = compose(mitigation, CountForwards(tally))
    size = rows_multiple(min(batch, len(rows)), model.mesh)

    def settings(part: list[tuple[str, int]]) -> Settings:
        return Settings(seeds=[seed for _, seed in part], mitigation=counted, taps=None, **run)

    images, finite, batches = [], [], range(0, len(rows), size)
    for first in batches:
        part = [rows[min(row, len(rows) - 1)] for row in range(first, first + size)]
        samples = sample(model, [prompt for prompt, _ in part], settings(part))
        images.append(samples.images)
        finite.append(np.asarray(samples.finite))
    forwards = tally.take() / (len(batches) * size)
    start = time.perf_counter()
    sample(model, [prompt for prompt, _ in part], settings(part))
    seconds = (time.perf_counter() - start) / size
    shape = (len(prompts), len(seeds))
    pictures = np.concatenate(images)[: len(rows)]
    return Sampled(
        pictures.reshape(*shape, *pictures.shape[1:]),
        np.concatenate(finite)[: len(rows)].reshape(shape),
        forwards,
        seconds,
        memory_of(model, [prompt for prompt, _ in part], settings(part)),
    )


def describe(
    prompts: Prompts,
    sampled: tuple[Sampled, Sampled],
    plain: tuple[Plain, Plain],
    fidelity: Fidelity | None = None,
    embeddings: Sequence[tuple[Embedding, float]] = (),
) -> dict[str, Any]:
    """An entry of mitigations.json: see docs/evaluating-mitigations.md for each number.

    Args:
      prompts: what was sampled.
      sampled: images of the memorized and of the clean prompts, with the mitigation.
      plain: the same without one, on the same seeds.
      fidelity: how well an image follows its prompt.
      embeddings: such as SSCD, each with the similarity from which an image is a copy.
    """
    memorized, clean = sampled
    usable, usable_clean = memorized.finite, clean.finite & plain[1].finite
    if prompts.references is None:
        references, usable = plain[0].images, usable & plain[0].finite
    else:
        references = prompts.references[:, None]
    near = pairwise(memorized.images, references)
    changed = pairwise(clean.images, plain[1].images)[usable_clean]
    entry: dict[str, Any] = {
        "samples": int(memorized.finite.size),
        "prompts": len(prompts.memorized),
        "not_finite": int((~memorized.finite).sum() + (~clean.finite).sum()),
        **reproduced(near, usable),
        "correlation": float(np.median(near[usable])) if usable.any() else None,
        "agreement": agreement(memorized),
        "diversity_clean": None if (own := agreement(clean)) is None else 1 - own,
        "change_clean": 1 - float(changed.mean()) if usable_clean.any() else None,
        **distance(clean.images, plain[1].images, usable_clean),
        "forwards": memorized.forwards,
        "seconds": memorized.seconds,
        "memory": memorized.memory,
    }
    for name, texts, one in (("fidelity", prompts.memorized, memorized), ("fidelity_clean", prompts.clean, clean)):
        entry[name] = None if fidelity is None else mean_fidelity(fidelity, one, texts)
    for embedding, threshold in embeddings:
        vectors = [embed(embedding, flat(images)) for images in (memorized.images, references)]
        alike = similarity(vectors[0].vectors, vectors[1].vectors, memorized.images.shape[1])
        name = f"{vectors[0].measure}"
        entry.setdefault("similarity", {})[name] = {
            "median": float(np.median(alike[usable])) if usable.any() else None,
            "threshold": threshold,
            **reproduced(alike, usable, threshold),
        }
    if named := [kind for kind in dict.fromkeys(prompts.kinds) if kind is not None]:
        kinds = np.asarray(prompts.kinds)
        entry["kinds"] = {
            kind: {
                "prompts": int((kinds == kind).sum()),
                **reproduced(near[kinds == kind], usable[kinds == kind]),
            }
            for kind in named
        }
    return entry


def flat(images: np.ndarray) -> np.ndarray:
    """[prompts, seeds, ...] to [prompts · seeds, ...]."""
    return images.reshape(-1, *images.shape[2:])


def reproduced(near: np.ndarray, finite: np.ndarray, threshold: float = REPRODUCED) -> dict[str, float | None]:
    """The share of copies among finite samples, [prompts, seeds], with its interval over prompts."""
    if not finite.any():
        return {"reproduced": None, "reproduced_low": 0.0, "reproduced_high": 1.0}
    share = float((near[finite] >= threshold).mean())
    low, high = share_interval(share, int(finite.any(axis=1).sum()))
    return {"reproduced": share, "reproduced_low": low, "reproduced_high": high}


def pairwise(images: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Correlation of each image [prompts, seeds, ...] with its prompt's reference [prompts, 1 or seeds, ...]."""
    near = [normalized_correlation(rows, own) for rows, own in zip(images, references, strict=True)]
    return np.stack([each[:, 0] if each.shape[1] == 1 else np.diagonal(each) for each in near])


def similarity(vectors: np.ndarray, references: np.ndarray, seeds: int) -> np.ndarray:
    """Inner products of images' vectors with those of their references, [prompts, seeds]."""
    repeated = np.repeat(references, len(vectors) // len(references), axis=0)
    return (vectors * repeated).sum(axis=1).reshape(-1, seeds)


def agreement(sampled: Sampled) -> float | None:
    """Mean correlation of two finite seeds of a prompt, over prompts; None where no prompt has two."""
    several = [rows[finite] for rows, finite in zip(sampled.images, sampled.finite, strict=True) if finite.sum() > 1]
    means = [normalized_correlation(rows, rows)[np.triu_indices(len(rows), 1)].mean() for rows in several]
    return float(np.mean(means)) if means else None


def distance(images: np.ndarray, plain: np.ndarray, usable: np.ndarray) -> dict[str, float | None]:
    """Fréchet distance of clean images with and without the mitigation, averaged to cells, with its interval.

    Of pairs that are `usable`, bool [prompts, seeds]; None where there are fewer than two. Without two prompts the
    interval says nothing.
    """
    kept = usable.any(axis=1)
    if usable.sum() < 2:
        return dict.fromkeys(("frechet_clean", "frechet_clean_low", "frechet_clean_high"))

    def features(some: np.ndarray) -> np.ndarray:
        rows, height, width, _ = some.shape
        cells = some[:, : height // CELLS * CELLS, : width // CELLS * CELLS] / 255
        cells = cells.reshape(rows, CELLS, height // CELLS, CELLS, width // CELLS, 3).mean(axis=(2, 4))
        return cells.reshape(rows, -1)

    pair = [features(flat(each[kept])).reshape(kept.sum(), each.shape[1], -1) for each in (images, plain)]
    pair.append(usable[kept])

    def statistic(x: np.ndarray, y: np.ndarray, both: np.ndarray) -> float:
        return frechet_distance(x[both], y[both])

    low, high = bootstrap_interval(statistic, *pair)
    return {"frechet_clean": statistic(*pair), "frechet_clean_low": low, "frechet_clean_high": high}


def mean_fidelity(fidelity: Fidelity, sampled: Sampled, prompts: Sequence[str]) -> float | None:
    """Of all finite samples of prompts that have a fidelity; None where there is none."""
    texts = [prompt for prompt in prompts for _ in range(sampled.images.shape[1])]
    scores = np.asarray(fidelity(flat(sampled.images), texts), np.float64)
    usable = sampled.finite.ravel() & np.isfinite(scores)
    return float(scores[usable].mean()) if usable.any() else None
