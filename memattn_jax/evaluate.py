"""`python -m memattn_jax.evaluate`, the same as `memattn evaluate`; see `memattn_jax.commands.evaluate`."""

from memattn_jax.commands.evaluate import Options as Options
from memattn_jax.commands.evaluate import cli as cli
from memattn_jax.commands.evaluate import main as main

if __name__ == "__main__":
    cli(alone=True)
