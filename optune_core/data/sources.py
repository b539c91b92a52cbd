"""Rows of a user's data set: a JSONL, JSON or Parquet file, or a data set of the hub, as one Arrow table."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

import pyarrow as pa
from pydantic import Field

from optune_core.errors import DataError
from optune_core.parts.section import Section
from optune_core.process.hidden_imports import show_all

_JSON_BLOCK_BYTES = 64 << 20
"""Longest JSON line that is read."""


class FileSource(Section):
    """A JSONL, JSON or Parquet file, known by its ending; local, or any URL that fsspec reads."""

    type: Literal["file"] = "file"
    path: str
    """Path or URL."""


class HubSource(Section):
    """A data set of the Hugging Face hub."""

    type: Literal["hub"] = "hub"
    dataset: str
    """Hub id (`owner/name`)."""
    name: str | None = None
    """Configuration of the data set, where it has several."""
    split: str = "train"
    """Which of its splits."""
    revision: str | None = None
    """Branch, tag or commit. Default: its main branch as it was when the store first read it."""


Source = Annotated[FileSource | HubSource, Field(discriminator="type")]


def source_identity(source: FileSource | HubSource) -> dict[str, Any]:
    """What tells this source's content from another's: a file's digest, or a hub data set's name and revision.

    A hub data set without `revision` is identified by name: what was drawn first in a store stays.

    Raises:
        DataError: the file cannot be read.
    """
    if isinstance(source, HubSource):
        return source.model_dump()
    hasher = hashlib.sha256()
    with _open(source.path) as file:
        while block := file.read(1 << 20):
            hasher.update(block)
    return {"type": "file", "sha256": hasher.hexdigest()}


def read_source(source: FileSource | HubSource) -> pa.Table:
    """All rows.

    Raises:
        DataError: it cannot be read or parsed, or has no rows.
    """
    table = _read_hub(source) if isinstance(source, HubSource) else _read_file(source.path)
    if table.num_rows == 0:
        raise DataError(f"{describe(source)} holds no rows: at least one prompt is needed")
    return table


def require_columns(table: pa.Table, columns: list[str], source: FileSource | HubSource) -> None:
    """Raises DataError, naming what is missing and what is there, unless all columns are present."""
    missing = [column for column in columns if column not in table.column_names]
    if missing:
        raise DataError(
            f"{describe(source)} has no column {', '.join(map(repr, missing))}: "
            f"its columns are {', '.join(table.column_names)}"
        )


def describe(source: FileSource | HubSource) -> str:
    """The source as a user would name it."""
    return f"data set {source.dataset!r} ({source.split})" if isinstance(source, HubSource) else f"file {source.path!r}"


def read_bytes(path: str) -> bytes:
    """A whole file; local, or any URL that fsspec reads. Raises DataError if it cannot be read."""
    with _open(path) as file:
        body: bytes = file.read()
    return body


def _read_file(path: str) -> pa.Table:
    import pyarrow.json
    import pyarrow.parquet as pq

    with _open(path) as file:
        try:
            if path.endswith(".parquet"):
                return pq.read_table(pa.BufferReader(file.read()))
            if path.endswith((".jsonl", ".json")):
                body = file.read()
                if not body.strip():
                    return pa.table({})
                if body.lstrip().startswith(b"["):
                    return pa.Table.from_pylist(json.loads(body))
                options = pyarrow.json.ReadOptions(block_size=_JSON_BLOCK_BYTES)
                return pyarrow.json.read_json(pa.BufferReader(body), read_options=options)
        except (
            ValueError,
            AttributeError,
        ) as error:  # ArrowInvalid is a ValueError; an array of no objects has no keys
            raise DataError(f"file {path!r} cannot be parsed: {error}") from error
    raise DataError(f"file {path!r}: the ending says neither JSONL (.jsonl, .json) nor Parquet (.parquet)")


def _read_hub(source: HubSource) -> pa.Table:
    show_all()
    from datasets import load_dataset

    try:
        dataset = load_dataset(source.dataset, source.name, split=source.split, revision=source.revision)
    except (OSError, ValueError) as error:
        raise DataError(f"{describe(source)} cannot be loaded: {error}") from error
    table: pa.Table = dataset.with_format("arrow")[:]
    return table


def _open(path: str) -> Any:
    import fsspec

    try:
        return fsspec.open(path, "rb").open()
    except OSError as error:
        raise DataError(f"file {path!r} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # each file system has errors of its own for a network that is away
        if "://" not in path:
            raise
        raise DataError(
            f"file {path!r} cannot be reached: {error}. Give the path of a local copy, or put the network right"
        ) from error
