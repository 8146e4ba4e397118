"""Columns that a table copies from its prompt records: the source, kept columns, and whether the prompt was cut."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa

from memattn_jax.errors import InputError
from memattn_jax.report.results import AS_JSON
from memattn_jax.text import counted, printable

if TYPE_CHECKING:
    from memattn_jax.checkpoints.tokenizer import Tokenizer

PREFIX = "kept_"


class Record(Protocol):
    """A prompt record; see `memattn_jax.prompts.Prompt`."""

    @property
    def text(self) -> str:
        """The prompt."""

    @property
    def place(self) -> str:
        """File and line."""

    @property
    def kept(self) -> tuple[str | None, ...]:
        """Values in the kept columns; none where the record comes from the command line."""


def kept_value(record: Record, place: int) -> str | None:
    """A record's value in one of the kept columns."""
    return record.kept[place] if record.kept else None


class Carried:
    """The columns of a table that come from its records.

    source            file and line, or the record's number in the file; null for prompts of the command line
    cut               whether the prompt had more tokens than the model reads, and lost the rest
    (a kept column)   its value as text; `kept_` is put before a name that the table has already
    """

    def __init__(self, schema: pa.Schema, keep: tuple[str, ...], tokenizer: "Tokenizer"):
        """Names the columns.

        Args:
          schema: of the table.
          keep: columns of the prompt file.
          tokenizer: the model's.

        Raises:
          InputError: the table has a column of this name both with and without the prefix.
        """
        self.tokenizer = tokenizer
        taken = {*schema.names, *AS_JSON, "source", "cut"}
        self.names: list[str] = []
        for name in keep:
            self.names.append(PREFIX + name if name in taken else name)
            if self.names[-1] in taken:
                raise InputError(f"--keep {printable(name, 80)}: the table already has {printable(self.names[-1], 80)}")
            taken.add(self.names[-1])
        kept = [pa.field(name, pa.string()) for name in self.names]
        fields = [pa.field("cut", pa.bool_()), *kept, pa.field("source", pa.string())]
        self.schema = pa.schema([*schema, *fields])

    def __call__(self, row: Mapping[str, Any], record: Record) -> dict[str, Any]:
        """The row with the columns from its record."""
        kept = record.kept or (None,) * len(self.names)
        length = row.get("length")
        cut = None if length is None else length == self.tokenizer.tokens and self.tokenizer.cuts(record.text)
        return {**row, "cut": cut, **dict(zip(self.names, kept, strict=True)), "source": record.place or None}

    @property
    def copies(self) -> dict[str, Callable[[Record], str | None]]:
        """What each kept column holds of a record."""
        return {name: partial(kept_value, place=place) for place, name in enumerate(self.names)}

    def repeat(self, row: Mapping[str, Any], number: int, record: Record) -> dict[str, Any]:
        """The row of a record whose prompt is an earlier row's."""
        return self({**row, "row": number}, record)

    def describe_cut(self, cut: int) -> str:
        """A line about the number of prompts that were cut."""
        return f"{counted(cut, 'prompt')} cut to {self.tokenizer.tokens} tokens; see the column cut"
