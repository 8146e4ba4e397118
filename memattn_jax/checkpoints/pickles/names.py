"""Classes and functions that a pickle mentions, which are names here and never the things themselves."""

from dataclasses import dataclass
from typing import Any

LENGTH = 200  # characters of a name
PYTHON_3 = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # protocol 2 has the names of Python 2


@dataclass(frozen=True)
class Global:
    """A class or function: its module and its name in there."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Instance(dict):
    """An instance of a class that is not known here: what the pickle stores of it, and nothing of the class."""


class RefusedError(ValueError):
    """A pickle asks for a class or function that no checkpoint needs; the message is its name."""


def parse(module: Any, name: Any) -> Global:
    """The name of a class or function, as Python 3 has it; raises ValueError unless both parts are short strings."""
    if type(module) is not str or type(name) is not str or len(module) + len(name) > LENGTH:
        raise ValueError("its pickle names a class by what is no name")
    return Global(PYTHON_3.get(module, module), name)
