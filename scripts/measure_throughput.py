"""Rows per second of `detect` by batch size and by number of devices, as ratios.

    python scripts/measure_throughput.py

The built-in model scores its clean prompts, numbered, since a prompt that comes again is not scored again. Each setting
has a process of its own, in turn and several times over; ratios are medians against batches of 32 on one device. The
devices are virtual, parts of one CPU, so more of them show what spreading costs, not what it gains.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from itertools import islice
from pathlib import Path

from demo_evaluation.tables import table

from memattn_jax import demo

SETTINGS = [(1, 1), (8, 1), (32, 1), (128, 1), (32, 2), (32, 4), (32, 8)]  # batch size and devices
BASE = (32, 1)
ROWS = 768  # a multiple of every batch size, so that no batch is filled up
DETECTORS = {"entropy_e": ["--detectors", "entropy_e", "--no-explain"], "the default, with tokens to blame": []}


def rate(folder: Path, batch: int, devices: int, options: list[str]) -> tuple[float, float]:
    """Rows per second and the device's share of the time, the first batch left out, of one run."""
    clean = (demo.FOLDER / "prompts" / "clean.txt").read_text(encoding="utf-8").splitlines()
    prompts = folder / "prompts.txt"
    numbered = (f"{prompt} {i}" for i, prompt in enumerate(islice(itertools.cycle(clean), ROWS)))
    prompts.write_text("\n".join(numbered), encoding="utf-8")
    command = [sys.executable, "-m", "memattn_jax.detect", "--prompts", str(prompts), "--out", str(folder / "out")]
    command += ["--batch-size", str(batch), "--overwrite", *options]
    flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    done = subprocess.run(command, env=os.environ | flags, capture_output=True, text=True, check=True)
    metrics = json.loads([line for line in done.stderr.splitlines() if '"event": "done"' in line][-1])
    return metrics["rows_per_second"], metrics["device_share"]


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="Measures rows per second of detect, as ratios.")
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    rates: dict[tuple[str, tuple[int, int]], list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for _, name, setting in itertools.product(range(rounds), DETECTORS, SETTINGS):
            rates.setdefault((name, setting), []).append(rate(Path(folder), *setting, DETECTORS[name]))
    rows = []
    for batch, devices in SETTINGS:
        row = [f"{batch}", f"{devices}"]
        for name in DETECTORS:
            pairs = zip(rates[name, (batch, devices)], rates[name, BASE], strict=True)
            ratios = [own[0] / base[0] for own, base in pairs]
            share = statistics.median(share for _, share in rates[name, (batch, devices)])
            row += [f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})", f"{share:.3f}"]
        rows.append(row)
    header = ["batch", "devices", *itertools.chain(*((f"{name}: rows/s", "device busy") for name in DETECTORS))]
    print(table(header, rows))


if __name__ == "__main__":
    main()
