"""Where the time of a guidance pair goes on one core, by kind of layer, beside diffusers.

    python scripts/profile_pairs.py sd14,sd21,demo

Both sides run on one core and in one thread, so that nothing overlaps. Attention is what lies between its linear maps;
"other" is norms, activations, sums and copies. Prints a Markdown table of milliseconds. Full-size models have random
weights; they take 8 GB and some minutes.
"""

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

from benchmark.kinds import KINDS
from benchmark.machine import processor
from benchmark.worker import Worker
from demo_evaluation.tables import table

from memattn_jax import demo

SIZES = {"sd14": 64, "sd21": 96, "demo": 16}  # of latents


def folder_of(name: str, scratch: str) -> Path:
    """The model's folder, written where its weights are random."""
    if name == "demo":
        return demo.MODEL
    folder = Path(scratch, name)
    write = Worker("models:write", {"preset": name, "folder": folder})
    write.ask("run", "write")
    write.stop()
    return folder


def profiles(folder: Path, size: int) -> list[dict[str, float]]:
    """Seconds by kind of our pair and of diffusers'."""
    found = []
    settings: dict[str, Any] = {"folder": str(folder), "size": size}
    for side, more in (("ours:unet", {"calls": ("pair",)}), ("peer:unet", {})):
        worker = Worker(side, settings | more)
        worker.ask("run", "pair")
        found.append(worker.ask("profile", "pair"))
        worker.stop()
    return found


def milliseconds(seconds: float) -> str:
    """Three digits, or more where they stand before the point."""
    return f"{1e3 * seconds:.3g}" if seconds < 0.1 else f"{1e3 * seconds:.0f}"


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", help=f"names separated by commas, of {', '.join(SIZES)}")
    names = parser.parse_args().models.split(",")
    if unknown := [name for name in names if name not in SIZES]:
        parser.error(f"no model {', '.join(unknown)}; there are {', '.join(SIZES)}")
    os.environ |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # of the processes that are started, too
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in names:
            ours, other = profiles(folder_of(name, scratch), SIZES[name])
            parts = {kind: (ours[kind], other[kind]) for kind in KINDS}
            parts["all"] = sum(ours.values()), sum(other.values())
            for kind, (own, peer) in parts.items():
                rows.append([f"`{name}`", kind.replace("_", "-"), milliseconds(own), milliseconds(peer)])
    print(table(["pair", "kind", "ours, ms", "diffusers, ms"], rows), processor(), sep="\n")


if __name__ == "__main__":
    main()
