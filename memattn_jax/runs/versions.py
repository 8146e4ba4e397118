"""Versions of the software that made a result."""

from importlib.metadata import version

from memattn_jax import __version__


def versions() -> dict[str, str]:
    """Versions of the packages that decide the numbers; of this one not as it was installed, which may be long ago."""
    return {"memattn_jax": __version__} | {name: version(name) for name in ("jax", "jaxlib", "flax", "transformers")}
