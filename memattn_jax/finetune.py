"""`python -m memattn_jax.finetune`, the same as `memattn finetune`; see `memattn_jax.commands.finetune`."""

from memattn_jax.commands.finetune import Options as Options
from memattn_jax.commands.finetune import cli as cli
from memattn_jax.commands.finetune import main as main

if __name__ == "__main__":
    cli(alone=True)
