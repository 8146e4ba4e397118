"""What the three model configurations share: reading, checking and writing JSON.

Field names, defaults and meanings are those of diffusers and transformers. A key that would change the maths and that
these models do not implement is an error, so that a checkpoint either computes what PyTorch computes or does not load.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeVar, get_type_hints

from memattn_jax.errors import InputError
from memattn_jax.text import printable
from memattn_jax.typed import misfit

T = TypeVar("T")
ANY = object()  # marks a key that never changes what these models compute
MOST_LAYERS = 1000  # of one kind in a model; a file that asks for a billion would take hours to refuse


def per_block(value: T | tuple[T, ...], blocks: int) -> tuple[T, ...]:
    """Expands one value for all blocks to one per block."""
    return value if isinstance(value, tuple) else (value,) * blocks


def check_count(key: str, *counts: int) -> None:
    """Raises InputError unless each count is at least 1, and `MOST_LAYERS` at most."""
    for count in counts:
        if not 1 <= count <= MOST_LAYERS:
            raise InputError(f"cannot build a model with {key}={count}; expected 1 to {MOST_LAYERS}")


def check_heads(channels: int, heads: int) -> None:
    """Raises InputError unless the channels of an attention layer divide into its heads."""
    if heads < 1 or channels < 1 or channels % heads:
        raise InputError(f"cannot build a model whose {channels} channels do not divide into {heads} heads")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Base class of the three configurations."""

    class_name: ClassVar[str]  # the PyTorch class that computes the same
    missing: ClassVar[Mapping[str, Any]]  # PyTorch's values of keys that a file lacks, where ours differ
    kept: ClassVar[tuple[str, ...]]  # fields that change nothing here, kept for PyTorch

    @classmethod
    def neutral(cls) -> Mapping[str, Any]:
        """Keys that are not fields, with the values (or `ANY`) under which they change nothing."""
        raise NotImplementedError

    @classmethod
    def from_json(cls, config: Mapping[str, Any], where: str = "config.json") -> Self:
        """Reads a parsed `config.json`; `where` names it in errors.

        A key that is not known and holds null asks for nothing. Flax's classes, which diffusers no longer has, wrote
        the same keys as PyTorch's.

        Raises:
          InputError: the config is another class's, a value has the wrong type, or a key is unknown or asks for what
            is not implemented.
        """
        class_name = config.get("_class_name", cls.class_name)
        if class_name not in (cls.class_name, f"Flax{cls.class_name}"):
            raise InputError(f"{where}: {printable(str(class_name), 60)} is not supported, only {cls.class_name}")
        types = get_type_hints(cls)
        names = {field.name for field in dataclasses.fields(cls)}
        neutral = cls.neutral()
        fields = {}
        for key, value in config.items():
            if key in names:
                fields[key] = False if value is None and types[key] is bool else value
            elif key.startswith("_") or (key not in neutral and value is None):
                continue
            elif key not in neutral:
                raise InputError(f"{where}: unknown key {printable(key, 60)!r}; its effect on the model is not known")
            elif neutral[key] is not ANY and value not in neutral[key]:
                supported = " or ".join(map(repr, neutral[key]))
                raise InputError(f"{where}: {key}={printable(repr(value), 60)} is not supported, only {supported}")
        if wrong := misfit(cls, fields):
            raise InputError(f"{where}: cannot build a model from this config: {wrong}")
        frozen = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
        try:
            return cls(**{**cls.missing, **frozen})
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        except (ValueError, ArithmeticError) as error:  # such as a list too short, or a zero
            raise InputError(f"{where}: cannot build a model from this config: {error}") from None

    def computed(self) -> dict[str, Any]:
        """What the networks' values depend on besides their weights: equal for files that say the same in two ways."""
        return {key: value for key, value in dataclasses.asdict(self).items() if key not in self.kept}

    def to_json(self) -> dict[str, Any]:
        """The class and the fields as JSON types; keys that are not fields have PyTorch's defaults."""
        items = dataclasses.asdict(self).items()
        fields = {key: list(value) if isinstance(value, tuple) else value for key, value in items}
        return {"_class_name": self.class_name} | fields
