"""Models without weights: the structure and shapes, to be filled from a checkpoint or compiled as they are."""

from collections.abc import Callable
from typing import TypeVar

import jax
from flax import nnx
from jax import Array

from memattn_jax.models.configs import Config

M = TypeVar("M", bound=nnx.Module)


class ConstantKey:
    """Stands in for `nnx.Rngs` where initial values are never computed.

    Counting keys inside `eval_shape` costs time quadratic in the number of parameters, six seconds for a UNet.
    """

    def params(self) -> Array:
        """The key for every parameter."""
        return jax.random.key(0)


def abstract(model_class: Callable[..., M], config: Config) -> M:
    """A model whose parameters are `jax.ShapeDtypeStruct`s, float32; nothing is allocated."""
    return nnx.eval_shape(lambda: model_class(config, rngs=ConstantKey()))
