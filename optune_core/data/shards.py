"""Tables in artifacts: their file names, and reading of tables whose shards are an artifact each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from optune_core.data.row_groups import read_groups
from optune_core.storage import ArtifactStore, Ref

REPLAY_FILE = "replay.parquet"
SELECTION_FILE = "selection.parquet"
RESPONSES_FILE = "responses.parquet"
SCORES_FILE = "scores.parquet"
PREFERENCES_FILE = "preferences.parquet"
TRAIN_PROMPTS_FILE, HELD_OUT_PROMPTS_FILE = "train.parquet", "held_out.parquet"
"""File names of tables inside artifacts."""


def shard_parents(role: str, shards: Sequence[Ref]) -> dict[str, Ref]:
    """Return shards as parents of a work: `role/00000`, `role/00001`, …"""
    return {f"{role}/{number:05d}": shard for number, shard in enumerate(shards)}


def shard_files(store: ArtifactStore, shards: Sequence[Ref], file: str) -> Iterator[Path]:
    """Yield the local file of each shard; an artifact is fetched when its file is yielded."""
    return (store.fetch(shard) / file for shard in shards)


def read_shards(store: ArtifactStore, shards: Sequence[Ref], file: str, schema: pa.Schema) -> pa.Table:
    """Return the tables of several shards as one.

    Raises:
        DataError: a file cannot be read, or lacks a column of the schema.
    """
    return pa.concat_tables([schema.empty_table(), *read_groups(shard_files(store, shards, file), schema)])
