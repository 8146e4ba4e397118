"""`python -m memattn_jax VERB …`, the same as `memattn VERB …`."""

from memattn_jax.commands.verbs import memattn

if __name__ == "__main__":
    memattn()
