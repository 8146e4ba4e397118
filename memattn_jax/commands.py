"""What the `python -m memattn_jax.<verb>` commands share."""

import os
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import version
from typing import NoReturn, TypeVar

from memattn_jax.errors import InputError

Options = TypeVar("Options")


def run_command(verb: str, options: type[Options], main: Callable[[Options], None]) -> NoReturn:
    """Parses the command line into a dataclass and runs `main`.

    Exit status: 0 done; 2 for what the user got wrong, after one line on standard error; 130 interrupted. Any other
    exception is a defect and keeps its traceback.
    """
    import tyro

    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it misses PyTorch, which nothing here needs
    parsed = tyro.cli(options, prog=f"python -m memattn_jax.{verb}")
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    try:
        main(parsed)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)


def versions() -> dict[str, str]:
    """Versions of the packages that decide the numbers."""
    return {name: version(name) for name in ("memattn_jax", "jax", "jaxlib", "flax", "transformers")}
