"""Values that are computed from a model's weights, kept while those weights stay in place."""

import weakref
from collections.abc import Callable, Hashable
from typing import Any

import jax
from jax.core import Tracer

PRECISION = "jax_default_matmul_precision"  # of the host program; what is computed under one is not found under another


class WeightCache:
    """Caches values by key until a weight of their model is replaced.

    JAX's arrays never change, so a model whose leaves are the same objects as before has the same weights; they are
    held weakly. A value that is still being traced, or whose weights are, is passed on and not remembered, and neither
    is one of weights that can change in place, as NumPy's.

    Args:
      rows: how many rows of values, along their leading axis, to remember at most; the values used last stay. What is
        no array counts as one.
    """

    def __init__(self, rows: int = 8):
        self.rows = rows
        self.values: dict[Hashable, Any] = {}
        self._weights: list[weakref.ref] = []

    def get(self, key: Hashable, model: Any, compute: Callable[[], Any]) -> Any:
        """The value of `compute`, computed now or cached.

        Args:
          key: of the value, for one model.
          model: a pytree, all that the value depends on besides its key.
          compute: makes the value, any pytree.
        """
        leaves = jax.tree.leaves(model)
        if not all(isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer) for leaf in leaves):
            return compute()
        if len(leaves) != len(self._weights) or any(
            held() is not leaf for held, leaf in zip(self._weights, leaves, strict=True)
        ):
            self.values.clear()
            self._weights = [weakref.ref(leaf) for leaf in leaves]
        key = (key, getattr(jax.config, PRECISION))
        value = self.values.pop(key, None)
        if value is None:
            value = compute()
        if not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(value)):
            self.values[key] = value
            while sum(map(rows_of, self.values.values())) > self.rows:
                del self.values[next(iter(self.values))]
        return value


def rows_of(value: Any) -> int:
    """Rows of the first array of a tree, 1 where there is none."""
    first = jax.tree.leaves(value)[0]
    return len(first) if isinstance(first, jax.Array) and first.ndim else 1
