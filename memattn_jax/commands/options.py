"""Options that several commands share, and the checks that run before JAX is imported and a model is loaded."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from memattn_jax.errors import InputError, check_name
from memattn_jax.prompts.record import is_text
from memattn_jax.registries import DETECTORS, PRESETS
from memattn_jax.storage import is_local
from memattn_jax.text import printable

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

BY_DEFAULT = tyro.conf.arg(help_behavior_hint="")  # for options whose help text states the default


def one_of(*names: str) -> Any:
    """For an option that takes one of these names: `--help` lists them."""
    return tyro.conf.arg(metavar="{" + "|".join(names) + "}")


def one_name(help: str, *names: str) -> Any:
    """The same for names too many for one line of `--help`, which then follow the help text."""
    return tyro.conf.arg(metavar="NAME", help=f"{help} One of {', '.join(names)}.")


def some_of(help: str, names: tuple[str, ...]) -> Any:
    """For an option that takes several of these names, separated by commas: `--help` lists them."""
    return tyro.conf.arg(metavar="NAME,…", help=f"{help}: {', '.join(names)}; or all.")


def flag(name: str) -> str:
    """The command-line option for a field."""
    return f"--{name.replace('_', '-')}"


def at_least(options: "DataclassInstance", least: int, *names: str) -> None:
    """Raises InputError where one of these fields is smaller; None stands for the default."""
    for name in names:
        value = getattr(options, name)
        if value is not None and value < least:
            raise InputError(f"{flag(name)} {value}: must be at least {least}")


def finite(options: "DataclassInstance", *names: str) -> None:
    """Raises InputError where one of these fields is NaN or infinite; None stands for the default."""
    for name in names:
        value = getattr(options, name)
        if value is not None and not math.isfinite(value):
            raise InputError(f"{flag(name)} {value}: must be finite")


def rates(options: "DataclassInstance", *names: str) -> None:
    """Raises InputError where one of these fields does not lie between 0 and 1; None stands for the default."""
    for name in names:
        value = getattr(options, name)
        if value is not None and not 0 < value < 1:
            raise InputError(f"{flag(name)} {value}: must be a rate between 0 and 1, such as 0.01")


def seeds(first: int, count: int) -> None:
    """Raises InputError unless this seed and those after it are 32-bit numbers."""
    if not 0 <= first <= 2**32 - count:
        raise InputError(f"--seed {first}: seeds {first} to {first + count - 1} must lie in [0, 2**32)")


def texts(options: "DataclassInstance", *names: str) -> None:
    """Raises InputError where one of these fields, or a text in it, is not valid Unicode."""
    for name in names:
        value = getattr(options, name) or ()
        if not all(map(is_text, (value,) if isinstance(value, str) else value)):
            raise InputError(f"{flag(name)}: the text is not valid UTF-8")


def fill_out(options: "DataclassInstance", folder: str) -> None:
    """Sets `out` where the options name no output folder; for `__post_init__` of a frozen class."""
    if not options.out:  # type: ignore[attr-defined]
        object.__setattr__(options, "out", folder)


def local_out(options: "DataclassInstance", name: str = "out") -> None:
    """Raises InputError for a URL as the output of a command that writes to this machine alone."""
    if re.match(r"[a-z][a-z0-9+.-]+:/", str(getattr(options, name))):  # pathlib makes one slash of two
        raise InputError(f"{flag(name)} {printable(str(getattr(options, name)), 80)}: expected a place on this machine")


def installed(extra: str, *packages: str) -> None:
    """Raises InputError where a package that an extra brings is missing."""
    if missing := [package for package in packages if find_spec(package) is None]:
        raise InputError(f'{missing[0]} is not installed: pip install "memattn-jax[{extra}]"')


def files(options: "DataclassInstance", *names: str) -> None:
    """Raises InputError where a local file or folder does not exist; standard input and URLs are checked later."""
    for name in names:
        path = getattr(options, name)
        if path is not None and str(path) != "-" and is_local(str(path)) and not Path(path).exists():
            raise InputError(f"{flag(name)} {printable(str(path), 80)}: no such file or folder")


def check_sscd(options: "DataclassInstance") -> None:
    """Raises InputError unless --sscd and --preset are given together, and the preset is known."""
    sscd, preset = options.sscd, options.preset  # type: ignore[attr-defined]
    if preset is not None:
        check_name("preset", preset, PRESETS, "--preset")
    if (sscd is None) != (preset is None):
        missing = "--preset, one of " + ", ".join(PRESETS) if preset is None else "--sscd FILE"
        raise InputError(f"{'--sscd' if preset is None else '--preset'} needs {missing}")


def names_of(text: str, known: tuple[str, ...], option: str, kind: str) -> tuple[str, ...]:
    """Splits a text such as "entropy_e,noise_norm"; "all" stands for all known names.

    Raises:
      InputError: an unknown name, or one that is listed twice.
    """
    names = tuple(text.split(","))
    for name in names:
        check_name(kind, name, (*known, "all"), option)
        if names.count(name) > 1:
            raise InputError(f"{option}: {name} is listed twice")
    return known if "all" in names else names


def judging(names: Sequence[str], option: str) -> None:
    """Raises InputError unless one of these detectors looks at the model, so that clean prompts tell something."""
    if all(DETECTORS[name][0] == "prompt" for name in names):
        raise InputError(f"{option}: {names[0]} reads the prompt alone; name a detector that looks at the model")


def chosen_steps(text: str | None, steps: int | None) -> tuple[int, ...] | None:
    """The steps that --noise-norm-steps lists; None stands for all.

    Raises:
      InputError: not whole numbers, or a step beyond a run of `steps`, where these are given.
    """
    if text is None:
        return None
    try:
        chosen = tuple(int(step) for step in text.split(","))
    except ValueError:
        raise InputError(f"--noise-norm-steps {printable(text, 40)}: expected whole numbers such as 0,1,2") from None
    for step in chosen:
        if step < 0 or (steps is not None and step >= steps):
            raise InputError(f"--noise-norm-steps {step}: steps are numbered from 0 to --steps - 1")
    return chosen


@dataclass(frozen=True, kw_only=True)
class PromptOptions:
    """Where prompts come from."""

    prompt: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[PROMPT …]", help_behavior_hint="")
    ] = ()
    """Prompts, each quoted."""
    prompts: Annotated[str | None, BY_DEFAULT] = None
    """Read prompts from a file instead, one table row per record: .txt (one prompt per line), .csv, .tsv, .jsonl, .json
    or .parquet, optionally gzipped (.gz); a folder, searched recursively; a gs:// or s3:// URL; or - for standard
    input."""
    keep: Annotated[str | None, BY_DEFAULT] = None
    """Columns of --prompts to copy into the output table as text, separated by commas, such as id,user. If the table
    has a column NAME of its own, the copy is named kept_NAME."""

    @property
    def kept(self) -> tuple[str, ...]:
        """The columns to copy, from `keep`."""
        return tuple(name.strip() for name in (self.keep or "").split(",") if name.strip())

    @property
    def has_prompts(self) -> bool:
        """Whether prompts are given, as arguments or in a file."""
        return self.prompts is not None or bool(self.prompt)

    def check_prompts(self, needed: bool) -> None:
        """Raises InputError for prompts that are missing or given twice, and for wrong files or columns."""
        if needed and not self.has_prompts:
            raise InputError('no prompts: give them as arguments ("a prompt" "another") or with --prompts FILE')
        if self.prompts is not None and self.prompt:
            raise InputError("--prompts: give prompts either as arguments or in a file, not both")
        files(self, "prompts")
        texts(self, "keep")
        if len(set(self.kept)) < len(self.kept):
            raise InputError(f"--keep {printable(self.keep or '', 80)}: a column is listed twice")
        if self.kept and self.prompts is None:
            raise InputError("--keep copies columns of a prompt file: add --prompts FILE")


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a run over many prompts is distributed and written."""

    shard_rows: int = 2048
    """Rows per Parquet file."""
    distributed: bool = False
    """Run as one of several processes started with the same command line, which find each other from TPU, Slurm or Open
    MPI metadata; each scores its own share of the prompts."""
    num_processes: Annotated[int | None, BY_DEFAULT] = None
    """Number of processes, if there is no such metadata."""
    process_id: Annotated[int | None, BY_DEFAULT] = None
    """Index of this process, from 0."""
    coordinator: Annotated[str | None, BY_DEFAULT] = None
    """host:port of process 0, through which the processes connect at startup. Default: they do not connect."""
    report: bool = False
    """Also write report.html, a page that needs no network, with up to 3000 rows."""

    def check_run(self) -> None:
        """Raises InputError for numbers out of range, and for a report of a process that sees a part of the rows."""
        at_least(self, 1, "shard_rows", "num_processes")
        at_least(self, 0, "process_id")
        if self.report and (self.distributed or (self.num_processes or 1) > 1):
            raise InputError("--report needs all rows: repeat the command as a single process once they are written")
