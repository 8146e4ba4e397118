"""Where the time of a PyTorch call goes on one core."""

from collections.abc import Callable
from typing import Any

import torch

from benchmark.kinds import KINDS

# parts of operations' names; of attention, the text's has the shorter keys
PARTS = {"convolution": ("conv",), "linear": ("addmm", "aten::mm", "aten::bmm", "matmul", "linear")}
ATTENTION = "scaled_dot_product"


def kind_of(name: str, shapes: list[list[int]]) -> str:
    """The kind of an operation, from its name and its arguments' shapes."""
    if ATTENTION in name and len(shapes) > 1 and shapes[1]:
        return "self_attention" if shapes[0][-2] == shapes[1][-2] else "cross_attention"
    return next((kind for kind, parts in PARTS.items() if any(part in name for part in parts)), "other")


def profile(run: Callable[[], Any], rounds: int) -> dict[str, float]:
    """Seconds of a run by kind, the mean of some; of a process with one thread."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as recorded:
        for _ in range(rounds):
            run()
    total = dict.fromkeys(KINDS, 0.0)
    for event in recorded.key_averages(group_by_input_shape=True):
        total[kind_of(event.key, event.input_shapes)] += event.self_cpu_time_total / rounds / 1e6
    return total
