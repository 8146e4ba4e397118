"""The exception for invalid input, and its message for unknown names."""

from collections.abc import Iterable
from difflib import get_close_matches

from memattn_jax.text import printable

LIMIT = 200  # characters of an error
VALUE = 40  # of these for the user's text


class InputError(ValueError):
    """Input that cannot be used: one line that says what is wrong, where, and what would be right.

    The command lines print it and exit with status 2; any other exception is a defect and keeps its traceback.
    """


def check_name(kind: str, name: str | None, known: Iterable[str], option: str = "") -> None:
    """Raises InputError unless a name is known: "unknown scheduler 'ddmi'; did you mean 'ddim'? expected one of …".

    Args:
      kind: kind of name, such as "scheduler".
      name: the name to check.
      known: valid names; as many are listed as fit in `LIMIT` characters.
      option: command-line option, such as "--scheduler".
    """
    known = tuple(known)
    if name in known:
        return
    shown = printable(str(name), VALUE)
    near = nearest(str(name), known)
    hint = "" if near is None else f" did you mean '{near}'?"
    text = f"{option}: unknown {kind} '{shown}';".removeprefix(": ") + f"{hint} expected one of "
    raise InputError(text + listed(known, LIMIT - len(text), near))


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The most similar known name: spelled alike, or containing the given one."""
    lower = {other.lower(): other for other in known}
    close = get_close_matches(name.lower(), lower, n=1)
    close += [other for other in lower if name and name.lower() in other]
    return lower[close[0]] if close else None


def listed(names: Iterable[str], length: int, first: str | None) -> str:
    """The names with commas between; of more than `length` characters, as many as fit, `first` and then in order."""
    names = list(names)
    text = ", ".join(names)
    if len(text) > length:
        names.sort(key=lambda name: name != first)
    while len(text) > length and names:
        names.pop()
        text = ", ".join([*names, "…"])
    return text


class RepeatedWarning(UserWarning):
    """A warning about the prompts of one batch; a long run may have many.

    The command line prints the first one, and a count at the end.
    """
