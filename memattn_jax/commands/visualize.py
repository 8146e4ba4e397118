"""Draw where the tokens of a prompt look, and the figures of the literature: `memattn visualize`.

Writes to --out a file for each figure, as heatmaps.png, and figures.json with their numbers and settings. More than
four prompts are drawn on several pages, as heatmaps-002.png. Without prompts, the built-in model's memorized and its
clean prompt are drawn, with bands and separation from its own groups of prompts.
"""

from typing import NoReturn

from memattn_jax.commands.command import run_command
from memattn_jax.commands.visualize_options import Options


def main(options: Options) -> None:
    """Samples the prompts and draws the figures."""
    from memattn_jax.commands.visualizing import visualize

    visualize(options)


def cli(*, alone: bool = False) -> NoReturn:
    """Runs `memattn visualize`; for `alone` see `run_command`."""
    run_command("visualize", Options, main, alone=alone)
