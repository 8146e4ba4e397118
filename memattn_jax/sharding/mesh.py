"""What --mesh says, before JAX is asked for devices."""

import re

from memattn_jax.errors import InputError, check_name
from memattn_jax.text import printable

AXES = ("data", "model")  # over data go the rows of a batch, over model the weights


def mesh_sizes(text: str) -> dict[str, int]:
    """Text like "data=4,model=2" to {"data": 4, "model": 2}; InputError where it is something else."""
    sizes = dict.fromkeys(AXES, 1)
    named = re.findall(r"(\w+)=(\d+)(?:,|$)", text) if re.fullmatch(r"\w+=\d+(,\w+=\d+)*", text) else []
    if not named or len({axis for axis, _ in named}) < len(named):
        raise InputError(f"--mesh '{printable(text, 40)}': sizes of axes are needed, for example data=4,model=2")
    for axis, size in named:
        check_name("axis", axis, AXES, f"--mesh {text}")
        if int(size) == 0:
            raise InputError(f"--mesh {text}: {axis} is 0; at least 1 is needed")
        sizes[axis] = int(size)
    return sizes
