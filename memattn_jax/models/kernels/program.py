"""Programs that the host calls, and the libraries that XLA on a CPU takes for their products and convolutions."""

from collections.abc import Callable
from functools import update_wrapper
from typing import Any, Generic, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from jax.extend.core import get_opaque_trace_state

P = ParamSpec("P")
R = TypeVar("R")

LIBRARY = "xla_cpu_experimental_ynn_fusion_type"  # what XLA gives to YNNPACK rather than to Eigen and its own loops
ALL_BUT_CONVOLUTIONS = "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"
NOTHING = ""
OUTSIDE = get_opaque_trace_state(convention="flax")  # JAX's state where it traces nothing, as while this is imported
NARROW = 512  # channels of text embeddings; in float32, models with fewer are as fast or faster by Eigen alone


def library_for(context: Any) -> str:
    """The choice for a program, by its text embeddings [..., channels]; None where it has none."""
    narrow = context is not None and context.shape[-1] < NARROW and context.dtype == jnp.float32
    return NOTHING if narrow else ALL_BUT_CONVOLUTIONS


class Program(Generic[P, R]):
    """`jax.jit`, with a choice of libraries where the host calls it on a CPU.

    YNNPACK, XLA's default, convolves more slowly than Eigen, most of all few channels, which it keeps on one core. Its
    products of few rows with large matrices are faster, and it alone has bfloat16 instructions.

    JAX takes such options of the outermost program alone. Called inside another one it is as `jax.jit` makes it, as is
    what `lower` and `trace` return.

    Args:
      function: what to compile. Where its first argument has text embeddings, [..., channels], as its `context`, the
        choice depends on them.
      static: names of its arguments that are no arrays.
    """

    def __init__(self, function: Callable[P, R], static: tuple[str, ...] = ()):
        update_wrapper(self, function)
        self.plain = jax.jit(function, static_argnames=static)
        self.lower, self.trace = self.plain.lower, self.plain.trace
        self.by_library = {
            library: jax.jit(function, static_argnames=static, compiler_options={LIBRARY: library})
            for library in (ALL_BUT_CONVOLUTIONS, NOTHING)
        }

    def jitted(self, first: Any) -> jax.stages.Wrapped:
        """The jitted function that a call with this first argument runs."""
        if get_opaque_trace_state(convention="flax") != OUTSIDE or jax.default_backend() != "cpu":
            return self.plain
        return self.by_library[library_for(getattr(first, "context", None))]

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """What the function returns."""
        return self.jitted(args[0])(*args, **kwargs)


def program(*static: str) -> Callable[[Callable[P, R]], Program[P, R]]:
    """A decorator that makes a `Program`; `static` names arguments that are no arrays."""
    return lambda function: Program(function, static)
