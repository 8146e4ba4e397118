"""Files of `torch.jit.save`, read without PyTorch: of the program in them, nothing is read or run.

Such a file is a zip container like that of `torch.save`. data.pkl holds the module and its submodules, constants.pkl
the tensors that a frozen program has in their place; the source code is beside them.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from memattn_jax.checkpoints.mapped import map_file
from memattn_jax.checkpoints.pickle_file import DAMAGE, ZIP, from_members, guarded, root_of
from memattn_jax.checkpoints.pickles.zip_members import zip_members


class Program(NamedTuple):
    """What a file holds beside its source code; arrays are views of the mapped file.

    Attributes:
      module: attributes and submodules by name, nested dicts.
      constants: a tuple, in the order in which the source code first mentions them.
    """

    module: Any
    constants: Any


def is_program(path: Path) -> bool:
    """Whether a file is one of `torch.jit.save`; False for a damaged one.

    Raises:
      FileNotFoundError, InputError: no such file, or an empty one.
    """
    data = map_file(path)
    if data[:4].tobytes() != ZIP:
        return False
    try:
        members = zip_members(data)
        return f"{root_of(members)}constants.pkl" in members
    except DAMAGE:
        return False


def load_program(path: Path) -> Program:
    """The module and constants of a file of `torch.jit.save`.

    Raises:
      FileNotFoundError, InputError: see `pickle_file.load_pickle`.
    """

    def both(data: np.ndarray) -> Program:
        members = zip_members(data)
        root = root_of(members)
        return Program(from_members(members, f"{root}data"), from_members(members, f"{root}constants"))

    return guarded(path, map_file(path), both)
