"""Where the time of a compiled program goes on one core, by the scopes that the models name."""

import re
import tempfile
from collections.abc import Callable
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


def profile(compiled: jax.stages.Compiled, run: Callable[[], Any], rounds: int) -> dict[str, float]:
    """Seconds of a run by kind, the mean of some; of a process whose products have one thread."""
    text = compiled.as_text()
    assert text is not None  # of a CPU's program
    kinds = kinds_of(text)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(rounds):
                run()
        (file,) = Path(folder).glob("**/*.xplane.pb")
        trace = jax.profiler.ProfileData.from_file(str(file))
    total = dict.fromkeys(KINDS, 0.0)
    for event in (event for plane in trace.planes for line in plane.lines for event in line.events):
        kind = kinds.get(dict(event.stats).get("hlo_op", ""))
        if kind is not None:
            total[kind] += event.duration_ns / rounds / 1e9
    return total
