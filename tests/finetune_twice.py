"""Runs the fine-tuning command of sys.argv twice in a process: the first may write small files alone."""

import contextlib
import functools
import io
import resource
import time

from memattn_jax.commands.command import run_command
from memattn_jax.commands.finetune import Options, main
from memattn_jax.training.settings import TrainSettings

SIZE = 20_000  # bytes: less than a checkpoint's largest file

if __name__ == "__main__":
    TrainSettings.optimizer = functools.cache(TrainSettings.optimizer)  # so the second run has its step compiled
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE, limits[1]))
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            run_command("finetune", Options, main)
    except SystemExit as stopped:
        print(
            f"status {stopped.code}", *(line for line in errors.getvalue().splitlines() if line.startswith("error: "))
        )
    time.sleep(1)  # other files of the refused checkpoint may still be written, where the next run removes them
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    run_command("finetune", Options, main)
