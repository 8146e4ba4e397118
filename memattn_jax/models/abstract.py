"""Models without weights: the structure and shapes, to be filled from a checkpoint or compiled as they are."""

import functools
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from flax import nnx

M = TypeVar("M", bound=nnx.Module)


class NoKeys:
    """Stands in for `nnx.Rngs` where initial values are never computed.

    Without a key, our initializers make shapes and nothing else, so that no tracing is needed to find out the shapes.
    """

    def params(self) -> None:
        """No key; see `memattn_jax.models.layers.unless_abstract`."""


@functools.lru_cache(maxsize=16)
def structure(model_class: Callable[..., nnx.Module], config: Hashable) -> tuple[Any, Any]:
    """What `nnx.merge` makes an abstract model of; finding it out takes up to 0.2 s."""
    return nnx.split(model_class(config, rngs=NoKeys()))


def abstract(model_class: Callable[..., M], config: Hashable) -> M:
    """A model whose parameters are `jax.ShapeDtypeStruct`s, float32; nothing is allocated.

    Each call returns a model of its own: filling one leaves the others as they are.
    """
    return nnx.merge(*structure(model_class, config), copy=True)
