"""Settings of the host program, changed for a while and put back."""

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def jax_settings(**values: Any) -> Iterator[None]:
    """Settings of `jax.config` for a while, for all threads."""
    import jax

    before = {name: getattr(jax.config, name) for name in values}
    try:
        for name, value in values.items():
            jax.config.update(name, value)
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
