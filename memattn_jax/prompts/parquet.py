"""Parquet files: one prompt per row."""

import json
from collections.abc import Iterator
from contextlib import suppress
from typing import IO, Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from memattn_jax.errors import InputError
from memattn_jax.prompts.record import Prompt, Wanted, judge, only_column
from memattn_jax.text import printable

ROWS = 4096  # read at once
AHEAD = 2**20  # bytes of a column, read ahead


class Column(NamedTuple):
    """A column, or a field of one.

    Attributes:
      name: its name in Parquet.
      path: names of the column and of the fields in it.
      type: of its values.
    """

    name: str
    path: tuple[str, ...]
    type: Any


def parse_parquet(file: IO[bytes], where: str, wanted: Wanted) -> Iterator[Prompt]:
    """The values in the wanted column: text, UTF-8 bytes, or lists with one of these.

    Raises:
      InputError: no such column, one of another kind, or a damaged file.
    """
    try:
        table = pq.ParquetFile(
            file, pre_buffer=False, buffer_size=AHEAD
        )  # the defaults would read a whole column at once
        prompt, *kept = (find_column(table.schema_arrow, name, where) for name in (wanted.column, *wanted.keep))
        if not is_textual(prompt.type):
            fields = f"; did you mean a field, {prompt.name}.NAME?" if pa.types.is_struct(prompt.type) else ""
            raise InputError(f"{where}: column '{printable(prompt.name, 80)}' has type {prompt.type}, not text{fields}")
        number, rows = 0, table.metadata.num_rows
        if wanted.extent is not None:
            wanted.extent.part = lambda: number / rows
        for batch in table.iter_batches(ROWS, columns=[column.name for column in (prompt, *kept)]):
            values = values_of(batch, prompt)
            carried = [as_texts(values_of(batch, column)) for column in kept]
            for row, value in enumerate(values):
                number += 1
                place = f"{where}: record {number}"
                yield judge(as_python(value), place, tuple(column[row] for column in carried))
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and (error.errno is not None or type(error) is not OSError):
            raise  # an error of the disk or network; those of pyarrow have no number
        raise InputError(f"{where}: damaged Parquet file ({printable(str(error).splitlines()[0], 80)})") from None


def find_column(schema: Any, name: str, where: str) -> Column:
    """The column of a name, or the field under its parts as a path if there is no such column.

    Raises:
      InputError: no such column, or several.
    """
    if name not in schema.names and "." in name:
        path = tuple(name.split("."))
        kind = schema.field(path[0]).type if schema.names.count(path[0]) == 1 else None
        for part in path[1:]:
            fields = [] if kind is None or not pa.types.is_struct(kind) else list(kind)
            kind = next((field.type for field in fields if field.name == part), None)
        if kind is not None:
            return Column(name, path, kind)
    return Column(name, (name,), schema.field(only_column(name, schema.names, where)).type)


def is_textual(kind: Any) -> bool:
    """Whether values of an Arrow type may be prompts."""
    if pa.types.is_dictionary(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return is_textual(kind.value_type)
    tests = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view", "null")
    return any(getattr(pa.types, f"is_{test}")(kind) for test in tests)


def values_of(batch: Any, column: Column) -> Any:
    """A column's array in a batch."""
    array = batch.column(column.path[0])
    for field in column.path[1:]:
        array = pc.struct_field(array, field)
    return array


def as_python(value: Any) -> Any:
    """The value of an Arrow scalar; text that is not UTF-8 becomes bytes, a time that Python has no type for text."""
    try:
        return value.as_py()
    except UnicodeDecodeError:
        if hasattr(value, "as_buffer"):
            return value.as_buffer().to_pybytes()
    except (ValueError, OverflowError):
        if pa.types.is_duration(value.type):
            return f"{value.value} {value.type.unit}"
        if pa.types.is_temporal(value.type):
            return value.cast(pa.string()).as_py()
    if isinstance(value, pa.DictionaryScalar):
        return as_python(value.value)
    if isinstance(value, pa.StructScalar):
        return {value.type.field(place).name: as_python(value[place]) for place in range(value.type.num_fields)}
    return [as_python(each) for each in value.values]


def as_texts(values: Any) -> list[str | None]:
    """The values of a kept column as text, nested ones as JSON."""
    # bytes of a UUID would pass for text where they happen to be UTF-8, and a duration loses its unit
    if not (isinstance(values.type, pa.UuidType) or pa.types.is_duration(values.type)):
        with suppress(pa.ArrowInvalid, pa.ArrowNotImplementedError, UnicodeDecodeError):
            return values.cast(pa.string()).to_pylist()
    return [as_text(as_python(value)) for value in values]


def as_text(value: Any) -> str | None:
    """A value as text, for types that Arrow cannot cast; nested ones as JSON."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if not isinstance(value, dict | list | tuple):
        return str(value)
    return json.dumps(value, ensure_ascii=False, default=as_text)
