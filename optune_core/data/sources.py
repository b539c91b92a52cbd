"""Reading of a user's data set, a JSONL, JSON or Parquet file or a data set of the hub, as one Arrow table."""

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
"""Largest size of a JSON line, in bytes."""


class FileSource(Section):
    """A JSONL, JSON or Parquet file; its ending tells which."""

    type: Literal["file"] = "file"
    path: str
    """A local path, or a URL that fsspec reads."""


class HubSource(Section):
    """A data set of the Hugging Face hub."""

    type: Literal["hub"] = "hub"
    dataset: str
    """Id of the data set, as owner/name."""
    name: str | None = None
    """Configuration of the data set. Default: the data set's own default."""
    split: str = "train"
    """Split of the data set."""
    revision: str | None = None
    """Commit, tag or branch. Default: the newest revision when the data set is first read."""


Source = Annotated[FileSource | HubSource, Field(discriminator="type")]


def source_identity(source: FileSource | HubSource) -> dict[str, Any]:
    """Return the identity of a source's content, as JSON: the digest of a file, or the fields of a hub data set.

    A hub data set without `revision` is identified by its name alone, so a store keeps what was first drawn from it.

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
    """Read all rows of a source.

    Raises:
        DataError: the source cannot be read or parsed, or has no rows.
    """
    table = _read_hub(source) if isinstance(source, HubSource) else _read_file(source.path)
    if table.num_rows == 0:
        raise DataError(f"{describe(source)} has no rows: give a source with at least one row")
    return table


def require_columns(table: pa.Table, columns: list[str], source: FileSource | HubSource) -> None:
    """Check that a table has all of these columns.

    Raises:
        DataError: columns are missing; the message names them and those that there are.
    """
    missing = [column for column in columns if column not in table.column_names]
    if missing:
        raise DataError(
            f"{describe(source)} has no column {', '.join(map(repr, missing))}: "
            f"its columns are {', '.join(table.column_names)}"
        )


def describe(source: FileSource | HubSource) -> str:
    """Return the name of the source for messages."""
    return f"data set {source.dataset!r} ({source.split})" if isinstance(source, HubSource) else f"file {source.path!r}"


def read_bytes(path: str) -> bytes:
    """Read a file.

    Args:
        path: a local path, or a URL that fsspec reads.

    Raises:
        DataError: the file cannot be read.
    """
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
        # ArrowInvalid is a ValueError; a JSON array whose entries are no objects raises AttributeError.
        except (ValueError, AttributeError) as error:
            raise DataError(f"file {path!r} cannot be parsed: {error}") from error
    raise DataError(
        f"file {path!r}: its name has to end in .jsonl or .json (JSON lines or an array) or in .parquet (Parquet)"
    )


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
    except Exception as error:  # each file system has its own errors for an unreachable network
        if "://" not in path:
            raise
        raise DataError(
            f"file {path!r} cannot be reached: {error}. Give the path of a local copy, or repair the network"
        ) from error
