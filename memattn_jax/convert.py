"""`python -m memattn_jax.convert`, the same as `memattn convert`; see `memattn_jax.commands.convert`."""

from memattn_jax.commands.convert import Options as Options
from memattn_jax.commands.convert import cli as cli
from memattn_jax.commands.convert import main as main

if __name__ == "__main__":
    cli(alone=True)
