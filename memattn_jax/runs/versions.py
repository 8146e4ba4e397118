"""Versions of the software that made a result."""

from importlib.metadata import version


def versions() -> dict[str, str]:
    """Versions of the packages that decide the numbers."""
    return {name: version(name) for name in ("memattn_jax", "jax", "jaxlib", "flax", "transformers")}
