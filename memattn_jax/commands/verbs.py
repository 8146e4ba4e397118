"""The verbs of `memattn`, and how one is started by its name. Imports neither JAX nor a command until one is called."""

import sys
from importlib import import_module

from memattn_jax.commands.host import quiet_pipes
from memattn_jax.errors import InputError, check_name

VERBS = {  # a verb's code is the module of its name in `memattn_jax.commands`
    "generate": "Generate images and measure the attention entropy of their prompts.",
    "detect": "Score prompts for memorization and name the tokens that stand out.",
    "evaluate": "Measure how well detectors separate memorized from clean prompts.",
    "visualize": "Draw where the tokens of a prompt look, and how memorized prompts differ.",
    "audit": "Audit a checkpoint for memorization, with evidence that can be checked again.",
    "copies": "Find the training image that each image is most like, or how far seeds agree.",
    "finetune": "Fine-tune a checkpoint, with or without a memorization gate.",
    "convert": "Export detectors as one file that runs without this package.",
}


def memattn() -> None:
    """Runs the command line `memattn VERB …`; without a verb it lists the verbs.

    For a process of its own, see `run_command`: the console script and `python -m memattn_jax` call it.
    """
    verb, rest = (sys.argv[1:2] or ["--help"])[0], sys.argv[2:]
    with quiet_pipes():
        if verb in ("-h", "--help"):
            print(overview())
            sys.exit(0)
        try:
            check_name("command", verb, VERBS)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
    sys.argv = [f"memattn {verb}", *rest]
    import_module(f"memattn_jax.commands.{verb}").cli(alone=True)


def overview() -> str:
    """The verbs, one a line."""
    width = max(map(len, VERBS))
    lines = [f"  {verb:{width}}  {text}" for verb, text in VERBS.items()]
    return "\n".join(
        ["usage: memattn VERB [OPTIONS]", "", *lines, "", "memattn VERB --help lists the options of a verb."]
    )
