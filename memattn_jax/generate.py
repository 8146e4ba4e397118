"""`python -m memattn_jax.generate`, the same as `memattn generate`; see `memattn_jax.commands.generate`."""

from memattn_jax.commands.generate import Options as Options
from memattn_jax.commands.generate import cli as cli
from memattn_jax.commands.generate import main as main

if __name__ == "__main__":
    cli(alone=True)
