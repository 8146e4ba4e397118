"""Parses --mesh without importing JAX."""

import re

from memattn_jax.errors import InputError, check_name
from memattn_jax.text import printable

AXES = ("data", "model")  # data splits the rows of a batch, model the weights


def mesh_sizes(text: str) -> dict[str, int]:
    """Parses "data=4,model=2" to {"data": 4, "model": 2}; raises InputError for other texts."""
    sizes = dict.fromkeys(AXES, 1)
    named = re.findall(r"(\w+)=(\d+)(?:,|$)", text) if re.fullmatch(r"\w+=\d+(,\w+=\d+)*", text) else []
    if not named or len({axis for axis, _ in named}) < len(named):
        raise InputError(f"--mesh '{printable(text, 40)}': expected axis sizes, for example data=4,model=2")
    for axis, size in named:
        check_name("axis", axis, AXES, f"--mesh {text}")
        if int(size) == 0:
            raise InputError(f"--mesh {text}: {axis} must be at least 1")
        sizes[axis] = int(size)
    return sizes
