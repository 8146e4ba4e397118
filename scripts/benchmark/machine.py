"""What ratios depend on besides the programs: the processor, its other work, and how fast each library multiplies."""

import os
import platform
import re
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

LIMIT = 0.3  # cores that others may keep busy, before a row and after it
SIDE = 2048  # of the matrices that rates are measured with
STAT = Path("/proc/stat")
PAUSE = 2.0  # seconds in which the load is measured


def processor() -> str:
    """The CPU's name, family and model numbers, cores and widest vectors."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    facts = dict(re.findall(r"^([^\t\n]+)\t*: (.*)$", info.read_text(), re.MULTILINE))
    flags = facts.get("flags", "").split()
    vectors = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16") if name in flags]
    name, family, model = (facts.get(key, "unknown") for key in ("model name", "cpu family", "model"))
    return f"{name} (family {family}, model {model}), {os.cpu_count()} cores, {' '.join(vectors)}"


def busy_ticks(text: str) -> int:
    """Ticks of a hundredth of a second that all cores together have worked, from the content of /proc/stat."""
    user, nice, system, _, _, interrupts, soft, stolen = map(int, text.split(maxsplit=9)[1:9])
    return user + nice + system + interrupts + soft + stolen


def cores_busy() -> float | None:
    """Cores that are busy now, with work of others where ours waits; None where Linux does not tell."""
    if not STAT.exists():
        return None
    first, start = busy_ticks(STAT.read_text()), time.perf_counter()
    time.sleep(PAUSE)
    ticks = busy_ticks(STAT.read_text()) - first
    return ticks / os.sysconf("SC_CLK_TCK") / (time.perf_counter() - start)


def refusal(before: float | None, after: float | None) -> str | None:
    """Why a row measured between these two says nothing; None where it does."""
    loads = {"before": before, "after": after}
    over = [f"{load:.2f} {when} it" for when, load in loads.items() if load is not None and load > LIMIT]
    return f"others kept more than {LIMIT} cores busy: {', '.join(over)}" if over else None


def rate(multiply: Callable[[], Any]) -> float:
    """GFLOP/s of a product of two square matrices of `SIDE`: the median of seven runs, after one."""
    multiply()
    seconds = []
    for _ in range(7):
        start = time.perf_counter()
        multiply()
        seconds.append(time.perf_counter() - start)
    return 2 * SIDE**3 / median(seconds) / 1e9
