"""Files of a table: Parquet shards, each of which says which run it belongs to."""

import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from memattn_jax.storage import Store

Row = dict[str, Any]
RUN = "identity"  # key of the run's digest in a schema
MADE_FROM = "jobs"  # and in a file that of the shard's jobs


def shard_name(shard: int) -> str:
    """File name of a shard."""
    return f"{shard:05d}.parquet"


def row_name(row: int, suffix: str) -> str:
    """File name for a row, such as that of its image."""
    return f"{row:05d}.{suffix}"


def numbered(name: str, suffix: str | None) -> int | None:
    """The number in a file name with this suffix, of a shard or a row; None for other names."""
    stem, _, ending = name.partition(".")
    return int(stem) if stem.isdecimal() and ending == suffix else None


def write_shard(store: Store, shard: int, rows: Sequence[Row], schema: pa.Schema, made_from: str) -> None:
    """Replaces a shard; raises OSError where that fails, and the old one is intact.

    Args:
      store: the folder.
      shard: its number.
      rows: all that it holds.
      schema: of the table, with the run's digest.
      made_from: digest of the jobs of the shard.
    """
    schema = schema.with_metadata({**(schema.metadata or {}), MADE_FROM: made_from})
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema), sink, compression="zstd", write_page_checksum=True)
    store.write(shard_name(shard), sink.getvalue())


@contextmanager
def opened(store: Store, name: str, schema: pa.Schema) -> Iterator[pq.ParquetFile | None]:
    """A shard's file, of which only the end has been read; None where there is none, or one of another run."""
    try:
        raw = store.open(name)
    except FileNotFoundError:
        yield None
        return
    with raw, pq.ParquetFile(raw, page_checksum_verification=True) as file:
        theirs = (file.metadata.metadata or {}).get(RUN.encode())
        ours = theirs == (schema.metadata or {})[RUN.encode()]
        if ours and file.schema_arrow.names != schema.names:
            raise pa.ArrowInvalid("names of columns have changed, which no checksum covers")
        yield file if ours else None


@contextmanager
def passing_over_damage(store: Store, name: str) -> Iterator[None]:
    """Ends the block, with a warning, where a shard turns out to be damaged; errors of the disk or network pass."""
    try:
        yield
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        if isinstance(error, OSError) and (error.errno is not None or type(error) is not OSError):
            raise  # those of pyarrow that say what is damaged have no number
        warnings.warn(f"{store}: {name} is damaged; its rows are left out until they are computed again", stacklevel=4)


def describe_shard(store: Store, name: str, schema: pa.Schema) -> tuple[int, str]:
    """Number of rows in a shard, and the digest of its jobs.

    0 and "" if it belongs to another run; the same, with a warning, if it is damaged.
    """
    with passing_over_damage(store, name), opened(store, name, schema) as file:
        if file is not None:
            return file.metadata.num_rows, file.metadata.metadata.get(MADE_FROM.encode(), b"").decode()
    return 0, ""


def read_shard(
    store: Store, shard: int, schema: pa.Schema, columns: Callable[[int], Sequence[str] | None]
) -> pa.Table | None:
    """The rows of a shard, of which only the columns asked for are read.

    None if there is no such shard, or it is of another run; the same, with a warning, if it is damaged.

    Args:
      store: the folder.
      shard: its number.
      schema: of the table, with the run's digest.
      columns: maps the number of rows to the columns to read; None are all.
    """
    name = shard_name(shard)
    with passing_over_damage(store, name), opened(store, name, schema) as file:
        if file is not None:
            names = columns(file.metadata.num_rows)
            return file.read(columns=None if names is None else list(names))
    return None
