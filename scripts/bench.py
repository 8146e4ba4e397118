"""Benchmarks: ratios of our times to PyTorch's, or to another program of ours, measured in turn on this machine.

    python scripts/bench.py --rows unet_sd14,sample_demo --json bench.json

Without --rows, all of them, which takes about an hour and 16 GB on two cores. Both sides of a row live in processes of
their own, are warmed by one call, and then run alternately; a ratio is the median over the rounds, with a bootstrap
interval of 95 %. XLA's programs are kept from one process to the next, as the commands keep them. Full-size models have
random weights, which both sides read from the same folder.

Every row says the processor, how fast each side multiplies two matrices, and how many cores others kept busy before and
after it. Where that is more than 0.3, or a side fails, the row is not printed, and the exit status is 1.

With `--device gpu`, other rows: Stable Diffusion in bfloat16 at several batch sizes against diffusers, eager and
compiled, and detection. `--json` then has the device's memory, the seconds of compiling and of the first call, and the
prompts of a call, from which rows a second follow.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from benchmark.gpu_rows import GPU_ROWS
from benchmark.machine import cores_busy, processor, refusal
from benchmark.rows import ROWS, Row
from benchmark.sides import start, start_both
from demo_evaluation.tables import table
from scipy.stats import bootstrap

SAME = 1e-3  # of the largest number, at each library's default precision
LIBRARIES = ("jax", "jaxlib", "flax", "torch", "diffusers", "transformers")
# What detection keeps of a step at Stable Diffusion 1's sites, 8 heads and 77 tokens, in bytes: ours the mean over
# pixels, float32, of the conditional row; the authors' code every map of both rows, float16 (MemAttn, processor.py)
PIXELS = {4096: 5, 1024: 5, 256: 5, 64: 1}  # {pixels: layers}
BYTES_KEPT = {
    "ours": 4 * 8 * 77 * sum(PIXELS.values()),
    "theirs": 2 * 2 * 8 * 77 * sum(pixels * layers for pixels, layers in PIXELS.items()),
}


class Bench:
    """Measures rows; models that they need are written to `scratch` once."""

    def __init__(self, scratch: Path):
        self.scratch = scratch
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(scratch / "xla")  # as the commands do

    def measure(self, name: str, rounds: int | None) -> dict[str, Any]:
        """One row: ratio, interval and what else is known."""
        if name == "bytes_kept":
            ratio = BYTES_KEPT["ours"] / BYTES_KEPT["theirs"]
            about = "bytes kept a step by taps of all layers, against the authors' code; counted"
            spread = {"ratio": ratio, "ratio_low": ratio, "ratio_high": ratio}
            return {"row": name, "about": about, **spread, "rounds": 1, "at_most": 1 / 1000, **BYTES_KEPT}
        row = (ROWS | GPU_ROWS)[name]
        rounds = rounds or row.rounds
        measured = self._memory(row, rounds) if row.measure == "peak_bytes" else self._seconds(row, rounds)
        values = measured.pop("values")
        ratios = np.array([own / other for own, other in values])
        interval = bootstrap(
            (ratios,), np.median, method="percentile", rng=np.random.default_rng(0)
        ).confidence_interval
        return {
            "row": name,
            "about": row.about,
            "ratio": float(np.median(ratios)),
            "ratio_low": float(interval.low),
            "ratio_high": float(interval.high),
            "rounds": rounds,
            "at_most": row.at_most,
            f"ours_{row.measure}": median(own for own, _ in values),
            f"other_{row.measure}": median(other for _, other in values),
            **measured,
        }

    def _seconds(self, row: Row, rounds: int) -> dict[str, Any]:
        ours, other = start_both(row, self.scratch)
        sides = ((ours, row.ours.call), (other, row.other.call))
        measured: dict[str, Any] = {"values": [], "prompts": row.prompts}
        for name, (worker, call) in zip(("ours", "other"), sides, strict=True):
            measured[f"{name}_first_seconds"] = worker.ask("run", call)
            measured[f"{name}_compile_seconds"] = worker.ask("compile_seconds", call)
        for i in range(rounds):
            order = sides if i % 2 == 0 else sides[::-1]  # whichever is second finds another machine than the first
            seconds = [worker.ask("run", call) for worker, call in order]
            measured["values"].append(seconds if i % 2 == 0 else seconds[::-1])
        measured["flops"] = ours.ask("flops", row.ours.call)
        measured |= {
            f"{name}_gflops": worker.ask("rate", row.dtype) for name, worker in (("ours", ours), ("other", other))
        }
        measured["ours_process_peak_bytes"] = ours.ask("peak_bytes", row.ours.call)
        measured["ours_device_bytes"], measured["other_device_bytes"] = (
            worker.ask("device_bytes", call) for worker, call in sides
        )
        if row.same:
            results = [worker.ask("result", call) for worker, call in sides]
            first = results[0][0] if isinstance(results[0], tuple) else results[0]
            measured["difference"] = float(np.abs(first - results[1]).max() / np.abs(results[1]).max())
            if not measured["difference"] < SAME:
                raise RuntimeError(f"the two sides of {row.about!r} differ by {measured['difference']:.2g}")
        for worker in {ours, other}:
            worker.stop()
        return measured

    def _memory(self, row: Row, rounds: int) -> dict[str, Any]:
        values = []
        for i in range(rounds + 1):  # the first fills the cache of compiled programs
            peaks = []
            for side in (row.ours, row.other):
                worker = start(side, self.scratch)
                worker.ask("run", side.call)
                peaks.append(worker.ask("peak_bytes", side.call))
                worker.stop()
            values += [peaks] * (i > 0)
        return {"values": values}


def as_table(results: list[dict[str, Any]]) -> str:
    """The results, as Markdown."""
    rows = []
    for result in results:
        interval = f"{result['ratio_low']:.3g} to {result['ratio_high']:.3g}"
        limit = "" if result["at_most"] is None else f"{result['at_most']:.3g}"
        rates = " / ".join(f"{result[side]:.0f}" for side in ("ours_gflops", "other_gflops") if side in result)
        loads = [result[when] for when in ("busy_before", "busy_after")]
        load = " / ".join("–" if one is None else f"{one:.2f}" for one in loads)
        found = [f"{result['ratio']:.3g}", interval, limit, result["rounds"], rates, load]
        rows.append([f"`{result['row']}`", result["about"], *found])
    head = ["ratio", "95 % interval", "at most", "rounds", "GFLOP/s", "others' cores"]
    return table(["row", "ours against the other", *head], rows)


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", help="names, separated by commas; by default all of the device")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu", help="of both sides")
    parser.add_argument("--rounds", type=int, help="instead of each row's own number")
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--any-load", action="store_true", help="print rows however busy others keep the machine")
    options = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = {"cpu": "cpu", "gpu": "cuda"}[options.device]  # of the processes that are measured
    names = [*ROWS, "bytes_kept"] if options.device == "cpu" else list(GPU_ROWS)
    chosen = names if options.rows is None else options.rows.split(",")
    if unknown := [name for name in chosen if name not in names]:
        parser.error(f"no row {', '.join(unknown)}; there are {', '.join(names)}")
    if options.rounds is not None and options.rounds < 2:
        parser.error(f"--rounds {options.rounds}: at least 2 are needed for an interval")
    versions = {name: version(name) for name in LIBRARIES} | {"python": platform.python_version()}
    cpu = processor()
    results, refused = [], []
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(Path(scratch))
        for name in chosen:
            before = cores_busy()
            try:
                measured = bench.measure(name, options.rounds)
            except Exception as error:  # such as too little memory; the other rows count all the same
                refused.append(name)
                print(f"{name}: failed; {error}", file=sys.stderr, flush=True)
                continue
            load = {"busy_before": before, "busy_after": (after := cores_busy())}
            if (why := refusal(before, after)) and not options.any_load:
                refused.append(name)
                print(f"{name}: not printed; {why}", file=sys.stderr, flush=True)
                continue
            results.append(measured | load | {"versions": versions, "processor": cpu})
            print(as_table(results[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
            if options.json is not None:
                options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(as_table(results))
    print(", ".join(f"{name} {number}" for name, number in versions.items()), cpu, sep="\n")
    sys.exit(1 if refused else 0)


if __name__ == "__main__":
    main()
