"""Renames stored tensors by the prefixes of their names."""

from collections.abc import Mapping

import numpy as np

Tensors = Mapping[str, np.ndarray]


def below(tensors: Tensors, prefix: str) -> dict[str, np.ndarray]:
    """The tensors whose names start with a prefix, without it."""
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def under(module: str, tensors: Tensors) -> dict[str, np.ndarray]:
    """The tensors with a module's path before their names."""
    return {f"{module}.{name}": tensor for name, tensor in tensors.items()}


def renamed(tensors: Tensors, modules: Mapping[str, str]) -> dict[str, np.ndarray]:
    """The tensors with their module renamed, that is all of the name before the last dot; other modules stay."""
    found = {}
    for name, tensor in tensors.items():
        module, dot, leaf = name.rpartition(".")
        found[f"{modules.get(module, module)}{dot}{leaf}"] = tensor
    return found


def left_out(stored: Tensors, found: Tensors) -> list[str]:
    """Names of the stored tensors that `found` holds no view of."""
    kept = {tensor.ctypes.data for tensor in found.values()}
    return [name for name, tensor in stored.items() if tensor.size and tensor.ctypes.data not in kept]


def numbered(tensors: Tensors) -> list[dict[str, np.ndarray]]:
    """The tensors of "0.…", "1.…" and so on, without these numbers."""
    groups: dict[int, dict[str, np.ndarray]] = {}
    for name, tensor in tensors.items():
        number, _, rest = name.partition(".")
        if number.isdecimal() and len(number) < 4:
            groups.setdefault(int(number), {})[rest] = tensor
    return [group for _, group in sorted(groups.items())]
