"""Where the time of the benchmark's rows goes on one core, by kind of layer.

    python scripts/profile_rows.py unet_sd14,unet_sd21,unet_demo,detector_sd14

Both sides of a row run on one core and in one thread, so that nothing overlaps. Attention is what lies between its
linear maps; "other" is norms, activations, sums and copies. Prints a Markdown table of milliseconds. Full-size models
have random weights; they take 8 GB and some minutes a row.
"""

import argparse
import os
import tempfile
from pathlib import Path

from benchmark.kinds import KINDS
from benchmark.machine import processor
from benchmark.rows import ROWS
from benchmark.sides import start_both
from demo_evaluation.tables import table

NAMES = [  # of UNets alone, and not compiled by PyTorch, whose kernels have no kind
    name
    for name, row in ROWS.items()
    if (row.ours.process, row.measure) == ("ours:unet", "seconds") and "compiled" not in row.other.settings
]


def milliseconds(seconds: float) -> str:
    """Three digits, or more where they stand before the point."""
    return f"{1e3 * seconds:.3g}" if seconds < 0.1 else f"{1e3 * seconds:.0f}"


def profiles(name: str, scratch: Path) -> list[list[str]]:
    """Lines of the table: a row's kinds, and all of them."""
    row = ROWS[name]
    workers = start_both(row, scratch)
    found = []
    for worker, side in zip(workers, (row.ours, row.other), strict=True):
        worker.ask("run", side.call)  # what the first call alone does is left out
        found.append(worker.ask("profile", side.call))
    for worker in set(workers):
        worker.stop()
    parts = [(kind.replace("_", "-"), *(side[kind] for side in found)) for kind in KINDS]
    parts.append(("all", *(sum(side.values()) for side in found)))
    return [[f"`{name}`", kind, milliseconds(own), milliseconds(other)] for kind, own, other in parts]


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", help=f"names separated by commas, of {', '.join(NAMES)}")
    chosen = parser.parse_args().rows.split(",")
    if unknown := [name for name in chosen if name not in NAMES]:
        parser.error(f"no row {', '.join(unknown)}; there are {', '.join(NAMES)}")
    os.environ |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # of the processes that are started, too
    with tempfile.TemporaryDirectory() as scratch:
        lines = [line for name in chosen for line in profiles(name, Path(scratch))]
    print(table(["row", "kind", "ours, ms", "other, ms"], lines), processor(), sep="\n")


if __name__ == "__main__":
    main()
