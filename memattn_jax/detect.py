"""`python -m memattn_jax.detect`, the same as `memattn detect`; see `memattn_jax.commands.detect`."""

from memattn_jax.commands.detect import Options as Options
from memattn_jax.commands.detect import cli as cli
from memattn_jax.commands.detect import main as main

if __name__ == "__main__":
    cli(alone=True)
