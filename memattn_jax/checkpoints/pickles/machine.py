"""Runs the instructions of a pickle with a machine of our own, for which a class or function is nothing but a name.

Python's `pickle.Unpickler` with a `find_class` that refuses is not enough for a file from a stranger. Its BUILD sets
attributes of whatever is on the stack, the permitted functions and classes of the running program included; its EXT
instructions fetch objects past `find_class`; a few bytes make it allocate gigabytes (an index of the memo, a length);
a key that nests deeply overflows the C stack when it is hashed, and integers made to collide keep a dict busy for
hours. `torch.load(weights_only=True)` has a machine of its own for the first reason, but it needs PyTorch and asks the
user to permit classes such as Lightning's `ModelCheckpoint` in Stable Diffusion's own files; before PyTorch 2.6 it let
code run (CVE-2025-32434).

Here nothing is imported and no function is called but those that `calls` lists. Instructions, bytes and the work that
calls cause are limited, and types are checked before every operation.
"""

import pickletools
from collections.abc import Callable, Collection
from typing import Any, BinaryIO

from memattn_jax.checkpoints.pickles.calls import call, find, set_state
from memattn_jax.checkpoints.pickles.names import Global, Instance, RefusedError

INSTRUCTIONS = 2**19  # a tensor takes thirty
WORK = 2**24  # bytes and items that calls may be given in all; a pickle can give the same ones again and again
LONG_BITS = 128
SIZED = (str, bytes, tuple, list, dict)
KEYS = (str, bytes, bool, type(None), Global)  # besides small integers; others nest or can be made to collide

ARGUMENT = {"BININT", "BININT1", "BININT2", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
ARGUMENT |= {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BINSTRING", "SHORT_BINSTRING", "BYTEARRAY8"}
CONSTANT = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list}
TUPLE = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
NOTHING = {"PROTO", "FRAME", "STOP"}


class Machine:
    """The state of one run: stack, marks in it, memo, and how much work is left."""

    def __init__(self, persistent: Callable[[Any], Any]):
        self.persistent = persistent
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.work = WORK

    def since_mark(self) -> list[Any]:
        """Takes everything above the last mark off the stack."""
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def call(self, function: Any, arguments: Any) -> Any:
        """What a REDUCE or NEWOBJ gives."""
        if type(function) is not Global or type(arguments) is not tuple:
            raise ValueError("its pickle calls what is no function")
        self.charge(arguments)
        return call(function, arguments)

    def build(self, target: Any, state: Any) -> None:
        """What a BUILD does."""
        self.charge(state.values() if type(state) is dict else state if type(state) is tuple else ())
        set_state(target, state)

    def charge(self, values: Collection[Any]) -> None:
        """Counts the work on some values and on what is in them; raises ValueError where it is too much in all."""
        self.work -= len(values) + sum(len(value) for value in values if type(value) in SIZED)
        if self.work < 0:
            raise ValueError("its pickle asks for too much work")

    def step(self, name: str, argument: Any) -> None:
        """One of the instructions that are more than a push."""
        stack = self.stack
        match name:
            case "MARK":
                self.marks.append(len(stack))
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "TUPLE":
                stack.append(tuple(self.since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack[-TUPLE[name] :] = [tuple(stack[-TUPLE[name] :])]
            case "GLOBAL":
                stack.append(find(*argument.split(" ", 1)))
            case "INST":  # the call that protocol 0 makes
                raise RefusedError(argument.replace(" ", "."))
            case "STACK_GLOBAL":
                attribute, module = stack.pop(), stack.pop()
                stack.append(find(module, attribute))
            case "REDUCE" | "NEWOBJ":
                arguments = stack.pop()
                stack.append(self.call(stack.pop(), arguments))
            case "BUILD":
                state = stack.pop()
                self.build(stack[-1], state)
            case "BINPERSID":
                stack.append(self.persistent(stack.pop()))
            case "APPEND" | "APPENDS":
                items = [stack.pop()] if name == "APPEND" else self.since_mark()
                if type(stack[-1]) is not list:
                    raise ValueError("its pickle appends to what is no list")
                stack[-1].extend(items)
            case "SETITEM":
                value = stack.pop()
                put(stack[-2], [stack.pop(), value])
            case "SETITEMS":
                items = self.since_mark()
                put(stack[-1], items)
            case "LONG1" | "LONG4":
                if argument.bit_length() > LONG_BITS:
                    raise ValueError(f"its pickle has an integer of {argument.bit_length():,} bits")
                stack.append(argument)
            case _:
                raise ValueError(f"its pickle has the instruction {name}, which torch.save does not write")


def put(target: Any, items: list[Any]) -> None:
    """Puts keys and values, one after the other, into a dict."""
    if type(target) not in (dict, Instance):
        raise ValueError("its pickle sets items of what is no dict")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not (type(key) in KEYS or (type(key) is int and abs(key) < 2**60)):
            raise ValueError(f"its pickle has a dict with a key of type {type(key).__name__}")
        if key in target:
            shown = key if type(key) is str else type(key).__name__
            raise ValueError(f"its pickle has a dict with the key {shown[:40]!r} twice")
        target[key] = value


def run(stream: BinaryIO, persistent: Callable[[Any], Any]) -> Any:
    """Reads one pickle.

    Args:
      stream: the bytes, in memory; left behind the pickle's last instruction.
      persistent: gives the object of a persistent id, which is how PyTorch stores what is not in the pickle itself.

    Returns:
      None, numbers, strings, bytes, tuples, lists, dicts, arrays, and `Global` and `Instance` for what is none of
      these; lists and dicts may contain themselves.

    Raises:
      ValueError, TypeError, IndexError, KeyError, OverflowError: damaged, or asks for what no checkpoint needs; a
        ValueError says what.
    """
    machine = Machine(persistent)
    push = machine.stack.append
    for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        name = opcode.name
        if name in ARGUMENT:
            push(argument)
        elif name in CONSTANT:
            push(CONSTANT[name])
        elif name in EMPTY:
            push(EMPTY[name]())
        elif name not in NOTHING:
            machine.step(name, argument)
        if count == INSTRUCTIONS:
            raise ValueError(f"its pickle has over {INSTRUCTIONS:,} instructions; a model's has a few ten thousand")
    return machine.stack.pop()
