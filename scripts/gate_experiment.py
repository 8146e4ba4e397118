"""Fine-tunes the built-in model on a set with duplicated pairs, with and without the gate, and compares.

    python scripts/gate_experiment.py gate --cache ~/.cache/demo-emoji

The set holds new captions, each with one fixed picture and many copies of it, among pairs that occur once. Layers and
quantiles of the entropy gates were chosen on twelve captions (`--half choose`); what they do is reported on twelve
others. All runs start from the same weights, see the same batches and make as many steps. gate/report/ receives the
data, a folder a run, gate.md with the tables, gate.json with the first, and gate.png: the duplicated pictures, then a
row of each run's samples. The second table tells which scores could have told duplicates from clean pairs. Runs that
it holds already go on where they stopped; with other settings they are refused.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
from collections import Counter
from itertools import islice
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from demo_data import DemoData, load_sprites
from demo_evaluation.classifier import objects_found, train_classifier
from demo_evaluation.duplicates import Pairs, diagnose
from demo_evaluation.tables import percent, table
from make_demo_data import write_imagefolder

from memattn_jax import demo
from memattn_jax.commands.finetune import Data
from memattn_jax.copies.correlation import REPRODUCED, normalized_correlation
from memattn_jax.demo.objects import Classifier
from memattn_jax.errors import InputError
from memattn_jax.pipeline import StableDiffusion
from memattn_jax.report.plots import save_grid
from memattn_jax.training.data import check, open_pairs
from memattn_jax.training.gate import timestep_bins, weights
from memattn_jax.training.settings import TrainSettings
from memattn_jax.training.start import fit_gate, score_batch, start
from memattn_jax.training.step import Batch

HALVES = {"choose": slice(0, None, 2), "report": slice(1, None, 2)}  # of the captions
COPIES = 240  # of each duplicated pair
SINGLES = 960  # pairs that occur once: a quarter of all examples
REFERENCE = 256  # held-out clean pairs that the thresholds are fitted on
FITTED = 64  # batches that scores are read off
CLEAN = 96  # pairs, never trained on, that duplicated ones are held against
RUNS = {
    "none": (),
    "late_entropy": ("--gate", "entropy", "--gate-sites", "up_blocks.2", "--gate-quantile", "0.75"),
    "last_entropy": ("--gate", "entropy", "--gate-sites", "up_blocks.2.attentions.1", "--gate-quantile", "0.7"),
    "noise_norm": ("--gate", "noise_norm"),
}


def stream(data: DemoData, first: int, count: int) -> list[tuple[np.ndarray, str]]:
    """Renderings of captions of the stream."""
    captions = [data.groups.stream_caption(np.random.default_rng(first + n)) for n in range(count)]
    return [(data.fresh_picture(caption, first + n), caption.text) for n, caption in enumerate(captions)]


def write_data(data: DemoData, out: Path, half: str) -> list[tuple[np.ndarray, str]]:
    """Writes duplicated/, with the copies as repeated lines, and reference/; returns the duplicated pairs."""
    prompts = data.groups.halves["unseen", "report"][HALVES[half]]
    pairs = [(data.fresh_picture(caption, 0), caption.text) for caption in prompts]
    write_imagefolder(out / "duplicated", [*pairs, *stream(data, 10**6, SINGLES)])
    metadata = out / "duplicated" / "metadata.jsonl"
    lines = metadata.read_text(encoding="utf-8").splitlines(keepends=True)
    metadata.write_text("".join(lines[: len(pairs)] * COPIES + lines[len(pairs) :]), encoding="utf-8")
    write_imagefolder(out / "reference", stream(data, 2 * 10**6, REFERENCE))
    return pairs


def finetune(out: Path, run: str, steps: int, rate: float) -> Path:
    """One run of the command, which goes on with what `out` holds of it; returns its model."""
    folder = out / run
    command = [sys.executable, "-m", "memattn_jax.finetune", "--data", out / "duplicated", "--out", folder]
    command += ["--steps", steps, "--batch-size", 32, "--learning-rate", rate, "--warmup-steps", 50]
    command += ["--schedule", "cosine", "--high-noise", 0.5, "--ema-decay", 0.99, *RUNS[run]]
    if RUNS[run]:
        command += ["--gate-reference", out / "reference"]
    subprocess.run(list(map(str, command)), check=True)
    return folder / "model"


def shares_stopped(out: Path, run: str) -> tuple[float, float]:
    """Of the duplicated rows, and of the others, how many a run's gate stops in the end, at random timesteps."""
    fields = {field.name for field in dataclasses.fields(TrainSettings)}
    stored = json.loads((out / run / "settings.json").read_text(encoding="utf-8"))
    settings = TrainSettings(**{name: value for name, value in stored.items() if name in fields})
    before = StableDiffusion.from_pretrained(demo.MODEL, dtype="float32")
    gate = fit_gate(
        before, settings, islice(Data(before, check(open_pairs(out / "reference")), settings).batches(0), FITTED)
    )
    sd = StableDiffusion.from_pretrained(out / run / "model", dtype="float32")
    state, setup = start(sd, settings, gate)
    duplicated = {sd.tokenizer([text]).input_ids[0].tobytes() for text in duplicates(out)}
    stopped: dict[bool, list[float]] = {True: [], False: []}
    for step, batch in enumerate(islice(Data(sd, check(open_pairs(out / "duplicated")), settings).batches(0), FITTED)):
        rows = Batch(batch["pictures"], batch["input_ids"])
        timesteps, scores = score_batch(setup, state.params, rows, jnp.int32(step))
        bins = timestep_bins(timesteps, len(setup.signal), settings.gate_bins)
        weight = np.asarray(weights(gate, bins, scores, jnp.zeros(len(scores), bool)))
        for w, ids in zip(weight, batch["input_ids"], strict=True):
            stopped[ids.tobytes() in duplicated].append(1 - w)
    return float(np.mean(stopped[True])), float(np.mean(stopped[False]))


def duplicates(out: Path) -> set[str]:
    """The captions that come many times."""
    lines = (out / "duplicated" / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    return {json.loads(line)["text"] for line, count in Counter(lines).items() if count > 1}


def compare(out: Path, data: DemoData, classifier: Classifier, models: dict[str, Path | None], pairs: Pairs) -> str:
    """The table, and the grid; `pairs` are the duplicated ones."""
    duplicated, prompts = zip(*pairs, strict=True)
    pictures = np.stack(duplicated)
    control = data.groups.halves["control", "report"]
    named = [caption.objects for caption in control]
    rows, grid = [], [pictures]
    for name, folder in models.items():
        sd = StableDiffusion.from_pretrained(folder or demo.MODEL)
        samples = [sd.sample(list(prompts), seeds=seed, taps=None).images for seed in range(4)]
        clean = [sd.sample([c.text for c in control], seeds=seed, taps=None).images for seed in range(4)]
        own = np.stack([np.diag(normalized_correlation(images, pictures)) for images in samples])
        found = objects_found(classifier, np.concatenate(clean), named * 4)
        kept = "" if folder is None else percent(shares_kept(folder.parent / "metrics.jsonl"))
        stopped = map(percent, shares_stopped(out, name)) if RUNS.get(name) else ("", "")
        reproduced = percent(float((own >= REPRODUCED).mean()))
        rows.append([name, reproduced, float(np.median(own)), percent(found), kept, *stopped])
        grid.append(samples[0])
    save_grid(out / "gate.png", grid)
    header = [
        "run",
        f"duplicated pictures reproduced (correlation ≥ {REPRODUCED:g})",
        "median correlation",
        "objects found, control prompts",
        "rows kept",
        "duplicated rows stopped, in the end",
        "others stopped",
    ]
    (out / "gate.json").write_text(json.dumps([dict(zip(header, row, strict=True)) for row in rows], indent=1) + "\n")
    return table(header, rows)


def shares_kept(metrics: Path) -> float:
    """Mean share of rows with weight 1."""
    return float(np.mean([json.loads(line)["kept"] for line in metrics.read_text(encoding="utf-8").splitlines()]))


def main(arguments: list[str]) -> int:
    """Runs the command; returns its exit status, 2 for what the user got wrong."""
    parser = argparse.ArgumentParser(description="Fine-tunes with and without the gate, and compares.")
    parser.add_argument("out", type=Path, help="folder for data, runs and tables")
    parser.add_argument("--cache", type=Path, required=True, help="folder where the emoji package is kept (74 MB)")
    parser.add_argument("--steps", type=int, default=600, help="of each run")
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--half", choices=HALVES, default="report", help="of the captions that come many times")
    options = parser.parse_args(arguments)
    out = options.out / options.half  # runs go on with what is there, which must be of the same captions
    try:
        out.mkdir(parents=True, exist_ok=True)
        data = DemoData(load_sprites(options.cache))
        pairs = write_data(data, out, options.half)
        models: dict[str, Path | None] = {"before": None}
        for run in RUNS:
            models[run] = finetune(out, run, options.steps, options.learning_rate)
        classifier = train_classifier(out / "classifier", data, 2_000)
        text = compare(out, data, classifier, models, pairs)
        folders = demo.MODEL, out / "none" / "model"
        before, after = (StableDiffusion.from_pretrained(folder, dtype="float32") for folder in folders)
        text += "\n" + diagnose(before, after, pairs, stream(data, 3 * 10**6, CLEAN))
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    (out / "gate.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
