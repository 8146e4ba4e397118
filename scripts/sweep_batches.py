"""Rows in batches against the same rows alone, on the built-in model: `python scripts/sweep_batches.py`.

Every first-step detector and each subset of them, trajectory detectors, sampling, the guard, exported programs and the
training gate's scores, at batch sizes up to 64 and with up to 16 probes. A deviation is relative to the median size of
what is compared over all rows; NaN counts as infinite. Nearly all of the time is compiling; --only names parts.
"""

import argparse
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from memattn_jax import Guard, StableDiffusion, demo
from memattn_jax.detectors.export import export_detector
from memattn_jax.detectors.scorer import Scorer
from memattn_jax.registries import DETECTORS, FIRST_STEP
from memattn_jax.training.settings import TrainSettings
from memattn_jax.training.start import score_batch, start
from memattn_jax.training.step import Batch

ROWS = 64
SIZES = (2, 3, 8, 15, 16, 17, 32, 64)
PROBES = (2, 3, 8, 16)
STEPS = 4  # of sampling runs
BOUND = 1e-5
OF_DERIVATIVES = ("sharpness", "hessian_difference", "condition_jacobian")
TRAJECTORY = tuple(name for name, (needs, _) in DETECTORS.items() if needs in ("trajectory", "image"))
# what latent_step_deviation compares to; any numbers show whether a row depends on its batch
CLEAN: dict[str, Any] = {"mean": np.ones(STEPS, np.float32), "deviation": np.ones(STEPS, np.float32)}
Row = tuple[str, str, float]  # what, how many together, deviation


def prompts() -> list[str]:
    """64 of the model's own, memorized and not."""
    groups = itertools.product(demo.HALVES, demo.GROUPS)
    return [prompt for half, group in groups for prompt in demo.prompts(group, half)[:8]][:ROWS]


def deviation(batched: Any, alone: Any) -> float:
    """The largest difference, relative to the median size of a row."""
    batched, alone = (np.asarray(x, np.float64) for x in (batched, alone))
    scale = np.median(np.abs(alone).reshape(len(alone), -1).max(axis=1))
    largest = np.abs(batched - alone).max() / scale
    return float(largest) if np.isfinite(largest) else float("inf")


def by_name(batched: dict[str, Any], alone: dict[str, Any], count: int) -> Iterator[tuple[str, float]]:
    """The deviation of each detector."""
    for name, scores in batched.items():
        yield name, deviation(scores[:count], alone[name][:count])


def subsets(names: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """All that are not empty, the whole last."""
    for count in range(1, len(names) + 1):
        yield from itertools.combinations(names, count)


def first_step(sd: StableDiffusion, sizes: Iterable[int]) -> Iterator[Row]:
    """Noise of their own: batch sizes, subsets of detectors that share a program, probes."""
    texts, seeds = prompts(), range(ROWS)
    alone = sd.detect(texts, FIRST_STEP, seeds=seeds, batch_size=1).scores
    for size in sizes:
        for names in ((*FIRST_STEP,), ("noise_norm",)):
            scores = sd.detect(texts[:size], names, seeds=seeds[:size], batch_size=size).scores
            for name, value in by_name(scores, alone, size):
                yield f"{name} of {len(names)}", f"{size} rows", value
    for names in subsets(FIRST_STEP):
        scores = sd.detect(texts[:16], names, seeds=seeds[:16], batch_size=16).scores
        worst = max(value for _, value in by_name(scores, alone, 16))
        yield "+".join(names), "16 rows", worst
    cheap = tuple(name for name in FIRST_STEP if name not in OF_DERIVATIVES)
    several = [sd.detect([text] * 16, FIRST_STEP, seeds=range(16), batch_size=1).scores for text in texts[:2]]
    for probes in PROBES:
        for names, shared in itertools.product((cheap, FIRST_STEP), (True, False)):
            scores = sd.detect(texts[:2], names, seeds=0 if shared else [0, 0], probes=probes, batch_size=2).scores
            means = {name: np.stack([one[name][:probes].mean() for one in several]) for name in names}
            for name, value in by_name(scores, means, 2):
                yield f"{name} of {len(names)}, {'shared' if shared else 'own'} noise", f"{probes} probes", value


def trajectory(sd: StableDiffusion, sizes: Iterable[int]) -> Iterator[Row]:
    """Detectors that follow a run, in one program."""
    texts, seeds = prompts(), range(ROWS)
    alone = sd.detect(texts, TRAJECTORY, seeds=seeds, batch_size=1, steps=STEPS, **CLEAN).scores
    for size in sizes:
        scores = sd.detect(texts[:size], TRAJECTORY, seeds=seeds[:size], batch_size=size, steps=STEPS, **CLEAN).scores
        for name, value in by_name(scores, alone, size):
            yield name, f"{size} rows", value
    probes = sd.detect(texts[:1], TRAJECTORY, seeds=0, probes=8, steps=STEPS, **CLEAN).scores
    means = sd.detect([texts[0]] * 8, TRAJECTORY, seeds=range(8), batch_size=1, steps=STEPS, **CLEAN).scores
    for name, value in by_name(probes, {name: score.mean(keepdims=True) for name, score in means.items()}, 1):
        yield name, "8 probes", value


def sample(sd: StableDiffusion, sizes: Iterable[int]) -> Iterator[Row]:
    """Latents and token means of plain and guarded runs, and the guard's scores."""
    texts = prompts()
    threshold = float(np.median(sd.detect(texts, "noise_norm", seeds=range(ROWS), batch_size=1)["noise_norm"]))
    for what, watch in (("sample", None), ("guard", Guard(threshold))):
        runs = [sd.sample([text], seeds=[i], guard=watch, steps=STEPS) for i, text in enumerate(texts)]
        latents = np.concatenate([run.latents for run in runs])
        tokens = {site: np.concatenate([run.tokens[site] for run in runs], axis=1) for site in sd.unet.sites}
        for size in sizes:
            run = sd.sample(texts[:size], seeds=range(size), guard=watch, steps=STEPS)
            yield f"{what}: latents", f"{size} rows", deviation(run.latents, latents[:size])
            worst = max(
                deviation(run.tokens[site].swapaxes(0, 1), tokens[site][:, :size].swapaxes(0, 1)) for site in tokens
            )
            yield f"{what}: token means", f"{size} rows", worst
            if watch is not None:
                scores = np.concatenate([run.guard_scores for run in runs])
                yield "guard: scores", f"{size} rows", deviation(run.guard_scores, scores[:size])


def exported(sd: StableDiffusion, sizes: Iterable[int]) -> Iterator[Row]:
    """A serialized program of two probes against the detectors themselves."""
    texts, names = prompts(), tuple(name for name in FIRST_STEP if name not in OF_DERIVATIVES)
    alone = sd.detect(texts, names, probes=2, batch_size=1).scores
    ids = sd.tokenizer(texts).input_ids
    for size in sizes:
        artifact = export_detector(Scorer(sd, names, probes=2), size)
        program = jax.export.deserialize(bytearray(artifact.program)).call
        for name, value in by_name(program(artifact.arrays, ids), alone, ROWS):
            yield f"export: {name}", f"{size} rows", value


def gate(sd: StableDiffusion, sizes: Iterable[int]) -> Iterator[Row]:
    """Scores of the training forward pass; a row's draws come from its place, so rows alone are first rows."""
    pictures = np.stack(list(demo.memorized_pictures().values()))[np.arange(ROWS) % 48]
    ids = sd.tokenizer(prompts()).input_ids
    for kind in ("entropy", "noise_norm"):
        state, setup = start(sd, TrainSettings(gate=kind))
        _, one = score_batch(setup, state.params, Batch(pictures[:1], ids[:1]), jnp.int32(0))
        for size in sizes:
            # the same draws for all: the first row of each batch
            _, scores = score_batch(setup, state.params, Batch(pictures[:size], ids[:size]), jnp.int32(0))
            yield f"gate: {kind}", f"first of {size}", deviation(scores[:1], one)


PARTS: dict[str, Callable[[StableDiffusion, Iterable[int]], Iterator[Row]]] = {
    "first_step": first_step,
    "trajectory": trajectory,
    "sample": sample,
    "export": exported,
    "gate": gate,
}


def main() -> None:
    """Prints a line a comparison, and the largest deviation."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="*", default=list(PARTS), choices=list(PARTS), help="parts to run")
    parser.add_argument("--sizes", nargs="*", type=int, default=SIZES, help="batch sizes")
    parser.add_argument("--dtype", default="float32", help="of weights and computation")
    options = parser.parse_args()
    sd = StableDiffusion.from_pretrained(demo.MODEL, dtype=options.dtype)
    worst, begun = 0.0, time.monotonic()
    for part in options.only:
        for what, together, value in PARTS[part](sd, options.sizes):
            worst = max(worst, value)
            note = "  ABOVE 1e-5" if value > BOUND else ""
            print(f"{time.monotonic() - begun:6.0f} s  {value:8.1e}  {together:12}  {what}{note}", flush=True)
    print(f"largest deviation {worst:.1e}")


if __name__ == "__main__":
    main()
