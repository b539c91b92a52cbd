"""Parquet files as streams of row groups: no table has to fit into memory, and equal rows give equal bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from optune_core.errors import DataError

ROW_GROUP = 8192
"""Rows per group. At the paper's lengths (512 + 2 · 512 tokens and their texts) about 100 MB of a replay set."""


def in_groups(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Regroup rows into tables of ROW_GROUP rows, each column in one piece. The last table may be shorter."""
    waiting: list[pa.Table] = []
    rows = 0
    for table in tables:
        waiting.append(table)
        rows += table.num_rows
        if rows < ROW_GROUP:
            continue
        joined = pa.concat_tables(waiting)
        done = rows - rows % ROW_GROUP
        for first in range(0, done, ROW_GROUP):
            yield joined.slice(first, ROW_GROUP).combine_chunks()
        waiting, rows = [joined.slice(done)], rows - done
    if rows:
        yield pa.concat_tables(waiting).combine_chunks()


def write_groups(tables: Iterable[pa.Table], schema: pa.Schema, path: Path) -> None:
    """Write a stream of tables as one Parquet file (zstd) in exactly this schema.

    The bytes depend on the rows alone, not on how the stream divides them. A group is written while the next is made.
    """
    # No dictionaries: texts and ids hardly repeat, zstd finds repetitions, and writing and reading take half the time.
    with (
        pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=False) as writer,
        ThreadPoolExecutor(1) as background,
    ):
        writing: Future[None] | None = None
        for group in in_groups(table.select(schema.names).cast(schema) for table in tables):
            if writing is not None:
                writing.result()
            writing = background.submit(writer.write_table, group, row_group_size=ROW_GROUP)
        if writing is not None:
            writing.result()


def read_groups(paths: Iterable[Path], schema: pa.Schema) -> Iterator[pa.Table]:
    """Read the rows of several files, one after another, in tables of ROW_GROUP rows.

    Args:
        paths: files written by `write_groups`; each is opened when its rows are needed.
        schema: columns to read, with their types; a file may have more.

    Raises:
        DataError: a file is not a complete Parquet file, or lacks one of the columns.
    """
    return in_groups(table for path in paths for table in _stored_groups(path, schema))


def read_rows(path: Path, schema: pa.Schema, first: int, count: int) -> pa.Table:
    """Read the rows `first` … `first + count - 1` of a file, and only the row groups that contain them.

    Raises:
        DataError: the file is not a complete Parquet file, or lacks one of the columns.
    """
    with _open(path, schema) as file:
        start, groups = 0, []
        offset = first
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if start + rows <= first:
                offset -= rows
            elif start < first + count:
                groups.append(group)
            start += rows
        return file.read_row_groups(groups, columns=schema.names).select(schema.names).slice(offset, count)


def count_rows(path: Path) -> int:
    """Return the number of rows of a file, from its footer. Raises DataError if it is not a complete Parquet file."""
    with _open(path, pa.schema([])) as file:
        return int(file.metadata.num_rows)


def _stored_groups(path: Path, schema: pa.Schema) -> Iterator[pa.Table]:
    with _open(path, schema) as file:
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, columns=schema.names).select(schema.names)


@contextmanager
def _open(path: Path, schema: pa.Schema) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(path) as file:
            stored = file.schema_arrow
            wrong = [f.name for f in schema if f.name not in stored.names or stored.field(f.name).type != f.type]
            if wrong:
                raise DataError(f"{path}: the columns {wrong} are missing or of another type; it has {stored.names}")
            yield file
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file with the columns {schema.names}: {error}") from error
