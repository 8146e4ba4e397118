"""Independent random numbers for each purpose."""

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What random numbers are drawn for. Its value is part of the seed, so a purpose never shifts another's numbers."""

    GROUPS = 1  # which words each group gets
    MEMORIZED = 2  # the fixed pictures
    EXAMPLES = 3  # the training examples
    FRESH = 4  # pictures of any caption, outside training
    LADDER = 5  # the fixed pictures of the ladder
    TEMPLATES = 6  # layouts and backgrounds of the templates


def generator(seed: int, purpose: Purpose, *numbers: int) -> np.random.Generator:
    """The generator of one draw for a purpose; the same arguments give the same random numbers."""
    return np.random.default_rng((seed, purpose, *numbers))
