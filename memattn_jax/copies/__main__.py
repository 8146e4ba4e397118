"""`python -m memattn_jax.copies`, the same as `memattn copies`; see `memattn_jax.commands.copies`."""

from memattn_jax.commands.copies import Options as Options
from memattn_jax.commands.copies import cli as cli
from memattn_jax.commands.copies import main as main

if __name__ == "__main__":
    cli(alone=True)
