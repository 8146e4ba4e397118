"""Where the time of a compiled program goes, by the scopes that the models name."""

import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax

from benchmark.kinds import KINDS

INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = .*? ([\w-]+)\((.*)$", re.MULTILINE)
SCOPES = re.compile(r'op_name="([^"]*)"')
KIND = re.compile(rf"\b({'|'.join(KINDS[:-1])})\b")
LOOPS = ("while", "conditional", "call")  # whose time is that of what they run


def kinds_of(program: str) -> dict[str, str]:
    """The kind of each instruction of an optimised program, {name: kind}, loops left out.

    Where XLA has made an instruction and given it no scope, its computation's other instructions have one.
    """
    found = {}
    for computation in program.split("\n\n"):
        scopes = " ".join(SCOPES.findall(computation))
        usual = max(KINDS[:-1], key=lambda kind: len(re.findall(rf"\b{kind}\b", scopes)))
        for name, operation, rest in INSTRUCTION.findall(computation):
            own = SCOPES.search(rest)
            if operation not in LOOPS:
                found[name] = (KIND.findall(own[1]) or ["other"])[-1] if own else usual
    return found


def shared_time(spans: Iterable[tuple[float, float, str]]) -> dict[str, float]:
    """Time of each kind, of (start, end, kind); while several run at once, each has an equal share."""
    edges = sorted(edge for start, end, kind in spans for edge in ((start, 1, kind), (end, -1, kind)))
    total, running = dict.fromkeys(KINDS, 0.0), Counter[str]()
    for (time, change, kind), (after, *_) in pairwise(edges):
        running[kind] += change
        for one, count in running.items():
            if count:
                total[one] += (after - time) * count / running.total()
    return total


def profile(compiled: jax.stages.Compiled, run: Callable[[], Any], rounds: int) -> dict[str, float]:
    """Seconds of a run by kind, the mean of some."""
    text = compiled.as_text()
    assert text is not None  # of a CPU's program
    kinds = kinds_of(text)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(rounds):
                run()
        (file,) = Path(folder).glob("**/*.xplane.pb")
        trace = jax.profiler.ProfileData.from_file(str(file))
    found = [event for plane in trace.planes for line in plane.lines for event in line.events]
    named = [(event, kinds.get(dict(event.stats).get("hlo_op", ""))) for event in found]
    spans = [(event.start_ns, event.start_ns + event.duration_ns, kind) for event, kind in named if kind is not None]
    return {kind: nanoseconds / rounds / 1e9 for kind, nanoseconds in shared_time(spans).items()}
