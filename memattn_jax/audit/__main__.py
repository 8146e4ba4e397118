"""`python -m memattn_jax.audit`, the same as `memattn audit`; see `memattn_jax.commands.audit`."""

from memattn_jax.commands.audit import Options as Options
from memattn_jax.commands.audit import cli as cli
from memattn_jax.commands.audit import main as main

if __name__ == "__main__":
    cli(alone=True)
