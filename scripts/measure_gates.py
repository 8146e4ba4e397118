"""Fine-tunes the built-in model without a gate, with each, and with controls that drop rows at random, and compares.

    python scripts/measure_gates.py gates --cache ~/.cache/demo-emoji

Three quarters of the rows are copies of a few new pictures with their captions, the others occur once. Runs of one
seed start from the same weights and see the same rows in the same order, noise and timesteps included; another seed has
other captions, pairs and draws. Each gate has a control of its own, which drops as many rows as it does with that
seed, at random. Settings were chosen on other captions (`--half choose`).

Each run is kept once it is done, and the same command goes on with the others. OUT receives gates.md, the table, and
manifest.json with what it is made of. Samples: SAMPLES of each copied caption, one of each control prompt.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from demo_data import DemoData, load_sprites
from demo_evaluation.tables import percent, table

from memattn_jax import StableDiffusion, demo
from memattn_jax.copies.correlation import REPRODUCED, normalized_correlation
from memattn_jax.demo.objects import ObjectsFound
from memattn_jax.errors import InputError
from memattn_jax.evaluation.shares import bootstrap_interval, share_interval
from memattn_jax.runs.parts import Part, Parts
from memattn_jax.storage import Store
from memattn_jax.training.gate import Gate
from memattn_jax.training.settings import TrainSettings
from memattn_jax.training.start import fit_gate, start, trained
from memattn_jax.training.step import Batch, train_step

COPIED = 4  # captions of a seed
SHARE = 0.75  # of rows that are copies
BATCH = 8
SAMPLES = 2  # of each copied caption
SAMPLING_STEPS = 20
CONTROLS = 16  # prompts
REFERENCE = 64  # batches of clean pairs that thresholds are fitted on
LAST = 0.25  # of a run, over which it is counted what the gate stops
GATES: dict[str, dict[str, Any]] = {
    "none": {},
    "entropy": {"gate_sites": "up_blocks.1", "gate_quantile": 0.5},
    "noise_norm": {"gate_quantile": 0.7},
    "loss": {},
    "fitted_loss": {"gate": "loss", "gate_quantile": 0.9},
}
FITTED = ("noise_norm", "fitted_loss")  # before training, on clean pairs; thresholds of the others follow the training


class Pairs(NamedTuple):
    """Pictures uint8 [n, 64, 64, 3] and token ids int32 [n, tokens]."""

    pictures: np.ndarray
    ids: np.ndarray


class Study(NamedTuple):
    """The model, and what a seed's runs are trained and measured on."""

    sd: StableDiffusion
    data: DemoData
    half: str
    steps: int
    rate: float

    def copied(self, seed: int) -> list[Any]:
        """The captions that come many times."""
        return list(self.data.groups.halves["unseen", self.half][COPIED * seed : COPIED * (seed + 1)])

    def pairs(self, captions: list[Any], first: int) -> Pairs:
        """A rendering of each caption."""
        pictures = [self.data.fresh_picture(caption, first + n) for n, caption in enumerate(captions)]
        return Pairs(np.stack(pictures), np.asarray(self.sd.tokenizer([c.text for c in captions]).input_ids))

    def stream(self, first: int, count: int) -> Pairs:
        """Pairs that occur once."""
        draw = self.data.groups.stream_caption
        return self.pairs([draw(np.random.default_rng(first + n)) for n in range(count)], first)

    def settings(self, name: str, seed: int, **changes: Any) -> TrainSettings:
        """Of a run."""
        base = TrainSettings(steps=self.steps, batch_size=BATCH, learning_rate=self.rate, seed=seed)
        own = {"gate": name} | GATES.get(name, {}) | changes
        return replace(base, warmup_steps=20, schedule="cosine", high_noise=0.5, **own)


def batches(copied: Pairs, once: Pairs, seed: int, steps: int) -> Iterator[tuple[Batch, np.ndarray]]:
    """Batches, and which of their rows are copies, bool [BATCH]."""
    rng, unseen = np.random.default_rng(seed), iter(range(len(once.ids)))
    for _ in range(steps):
        copies = rng.random(BATCH) < SHARE
        chosen = [(copied, rng.integers(len(copied.ids))) if copy else (once, next(unseen)) for copy in copies]
        pictures, ids = (np.stack([pairs[part][row] for pairs, row in chosen]) for part in (0, 1))
        yield Batch(pictures, ids), copies


def finetune(study: Study, settings: TrainSettings, gate: Gate | None) -> tuple[StableDiffusion, dict[str, float]]:
    """One run: the model, and shares of rows that the gate stopped; captions dropped for guidance are never gated."""
    seed = settings.seed
    copied = study.pairs(study.copied(seed), 0)
    once = study.stream(10**6 * (1 + seed), int(study.steps * BATCH * (1 - SHARE) * 1.2) + BATCH)
    state, setup = start(study.sd, settings, gate)
    stopped, of_copies = [], []
    for batch, copies in batches(copied, once, seed, study.steps):
        state, metrics = train_step(state, setup, batch)
        stopped.append(1 - np.asarray(metrics["weight"]))
        of_copies.append(copies)
    rows, copies, last = np.array(stopped), np.array(of_copies), slice(int(study.steps * (1 - LAST)), None)
    gated = 1 - settings.dropout
    shares = {
        "stopped": rows.mean() / gated,
        "stopped_copies": rows[last][copies[last]].mean() / gated,
        "stopped_others": rows[last][~copies[last]].mean() / gated,
    }
    return trained(study.sd, state, setup), {name: float(share) for name, share in shares.items()}


def sample(sd: StableDiffusion, prompts: list[str], seed: int) -> np.ndarray:
    """An image of each prompt, some at a time."""
    size = COPIED * SAMPLES
    parts = [prompts[first : first + size] for first in range(0, len(prompts), size)]
    return np.concatenate(
        [sd.sample(part, seeds=range(seed, seed + len(part)), steps=SAMPLING_STEPS, taps=None).images for part in parts]
    )


def run(study: Study, settings: TrainSettings, fitted: Gate | None) -> Part:
    """Trains and measures."""
    began, seed = time.process_time(), settings.seed
    sd, shares = finetune(study, settings, fitted)
    captions, prompts = study.copied(seed), demo.prompts("control", study.half)[:CONTROLS]
    images = sample(sd, [caption.text for caption in captions for _ in range(SAMPLES)], 0)
    own = study.pairs(captions, 0).pictures
    alike = [normalized_correlation(images[i : i + 1], own[i // SAMPLES][None])[0, 0] for i in range(len(images))]
    found = ObjectsFound()(sample(sd, prompts, 100), prompts)
    results = shares | {
        "correlations": np.reshape(alike, (COPIED, SAMPLES)).tolist(),
        "objects": np.asarray(found, float).tolist(),
        "cpu_seconds": time.process_time() - began,
    }
    return Part(results, {"images": images})


def correlations(runs: dict[tuple[str, int], dict[str, Any]], name: str) -> np.ndarray:
    """Of samples with their captions' own pictures, [captions of all seeds, samples]."""
    return np.concatenate([result["correlations"] for (other, _), result in runs.items() if other == name])


def control(gate: str) -> str:
    """The name of the run that drops as many rows as this gate, at random."""
    return f"random, as many as {gate}"


def difference(above: np.ndarray | None, near: np.ndarray) -> str:
    """How far a gate's correlations lie below its control's on the same captions, with the interval; "" without one."""
    if above is None:
        return ""
    below = (above[: len(near)] - near[: len(above)]).mean(axis=1)
    low, high = bootstrap_interval(lambda values: float(values.mean()), below)
    return f"{below.mean():.3f} ({low:.3f} to {high:.3f})"


def summarize(runs: dict[tuple[str, int], dict[str, Any]]) -> str:
    """The table: a row for each gate and control, over all of its seeds, with 95 % intervals.

    Args:
      runs: results by name and seed.
    """
    rows, by_name = [], {name: correlations(runs, name) for name in dict.fromkeys(name for name, _ in runs)}
    for name, near in by_name.items():
        own = [result for (other, _), result in runs.items() if other == name]
        objects = np.mean([result["objects"] for result in own], axis=0)  # of each prompt, over seeds
        copied = (near >= REPRODUCED).mean(axis=1)
        low, high = share_interval(float(copied.mean()), len(near))
        median = bootstrap_interval(lambda rows: float(np.median(rows)), near)
        kept = bootstrap_interval(lambda values: float(values.mean()), objects)
        shares = [np.mean([result[f"stopped{of}"] for result in own]) for of in ("", "_copies", "_others")]
        rows.append(
            [
                name,
                f"{percent(copied.mean())} ({100 * low:.0f} to {100 * high:.0f})",
                f"{np.median(near):.3f} ({median[0]:.3f} to {median[1]:.3f})",
                difference(by_name.get(control(name)), near),
                f"{percent(objects.mean())} ({100 * kept[0]:.0f} to {100 * kept[1]:.0f})",
                *map(percent, shares),
            ]
        )
    header = [
        "gate",
        f"copied pictures reproduced (correlation ≥ {REPRODUCED:g})",
        "median correlation",
        "below its control's, mean",
        "objects found, control prompts",
        "rows stopped",
        "of copies, in the last quarter",
        "of others",
    ]
    return table(header, rows)


def measure(study: Study, parts: Parts, names: list[str], seeds: int) -> str:
    """All runs, those that are kept already aside; the table so far is written after each."""
    fits: dict[str, Gate] = {}
    runs: dict[tuple[str, int], dict[str, Any]] = {}

    def kept(name: str, settings: TrainSettings) -> str:
        """One run under its name; returns the table with it."""
        seed = settings.seed
        title = f"{name}, seed {seed}"
        about = {"gate": settings.gate, "seed": seed, "quantile": settings.gate_quantile, "sites": settings.gate_sites}
        if (part := parts.read(title, about)) is None:
            if name in FITTED and name not in fits:
                clean = study.stream(9 * 10**6, REFERENCE * BATCH)
                rows = ({"pictures": p, "input_ids": i} for p, i in zip(*split(clean), strict=True))
                fits[name] = fit_gate(study.sd, study.settings(name, 0), islice(rows, REFERENCE))
            part = run(study, settings, fits.get(name))
            parts.write(title, about, part)
        runs[name, seed] = part.results
        text = summarize(runs)
        parts.store.write("gates.md", text.encode())
        print(f"{title}: {part.results}", flush=True)
        return text

    for seed in range(seeds):
        for gate in names:
            text = kept(gate, study.settings(gate, seed))
            if gate != "none":
                quantile = max(0.0, 1 - runs[gate, seed]["stopped"])
                text = kept(control(gate), study.settings("random", seed, gate_quantile=quantile))
    return text


def split(pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """Pairs in batches."""
    pictures, ids = (array.reshape(-1, BATCH, *array.shape[1:]) for array in pairs)
    return pictures, ids


def main(arguments: list[str]) -> int:
    """Runs the command; returns its exit status, 2 for what the user got wrong."""
    parser = argparse.ArgumentParser(description="Fine-tunes with each gate, without one and with a control.")
    parser.add_argument("out", type=Path, help="folder for results")
    parser.add_argument("--cache", type=Path, required=True, help="folder where the emoji package is kept (74 MB)")
    parser.add_argument("--gates", default=",".join(GATES), help="names, separated by commas")
    parser.add_argument("--seeds", type=int, default=3, help="number of them, from 0")
    parser.add_argument("--steps", type=int, default=170, help="of each run")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--half", choices=demo.HALVES, default="report", help="of the captions that come many times")
    options = parser.parse_args(arguments)
    try:
        sd = StableDiffusion.from_pretrained(demo.MODEL, dtype="float32")
        study = Study(sd, DemoData(load_sprites(options.cache)), options.half, options.steps, options.learning_rate)
        identity = {"command": "measure_gates", "model": sd.fingerprint(pictures=True), "half": options.half}
        identity |= {"steps": options.steps, "learning_rate": options.learning_rate, "share": SHARE, "batch": BATCH}
        parts = Parts(Store(options.out), identity, overwrite=False)
        text = measure(study, parts, options.gates.split(","), options.seeds)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
