"""Checks of numbers that several mitigations share."""

from numbers import Integral

import numpy as np

from memattn_jax.errors import InputError


def check_counts(least: int, **counts: int) -> None:
    """Raises InputError for a field that is not a whole number, or is below `least`."""
    for name, count in counts.items():
        if not isinstance(count, Integral) or count < least:
            raise InputError(f"{name} is {count}; must be a whole number, at least {least}")


def check_share(**shares: float) -> None:
    """Raises InputError for a field that is not between 0 and 1."""
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise InputError(f"{name} is {share}; must be between 0 and 1")


def check_finite(what: str, *values: np.ndarray) -> None:
    """Raises InputError where a mitigation would learn from NaN or infinity.

    Args:
      what: whose numbers these are, such as "pruned_weights: a run of the memorized prompts".
      values: of any shape.
    """
    if not all(np.isfinite(each).all() for each in values):
        raise InputError(f"{what} is not finite; load the model in float32")
