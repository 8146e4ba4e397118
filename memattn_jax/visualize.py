"""`python -m memattn_jax.visualize`, the same as `memattn visualize`; see `memattn_jax.commands.visualize`."""

from memattn_jax.commands.visualize import Options as Options
from memattn_jax.commands.visualize import cli as cli
from memattn_jax.commands.visualize import main as main

if __name__ == "__main__":
    cli(alone=True)
