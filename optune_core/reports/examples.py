"""Prompts whose response changed most over a run, with their history. No other texts are read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from optune_core.data.row_groups import read_groups
from optune_core.data.schemas import REPLAY, only
from optune_core.reports.facts import Example, Version
from optune_core.storage import ArtifactStore, Ledger

Numbers = npt.NDArray[np.float64]

_COUNT = 5
"""Largest gains that are shown, and largest losses."""
_TEXTS = only(
    REPLAY,
    "prompt_id",
    "prompt",
    "chosen",
    "chosen_token_ids",
    "chosen_reward",
    "rejected",
    "rejected_token_ids",
    "rejected_reward",
    "generated_at",
    "status",
    "reason",
)


def most_changed(store: ArtifactStore, ledger: Ledger, count: int = _COUNT) -> tuple[list[Example], list[Example]]:
    """Return the prompts whose chosen reward rose most, and those whose fell most, from their first to their last pair.

    Returns:
        (gains, losses), the largest first, at most `count` each; empty where no pair was ever replaced.
    """
    files = [store.fetch(record["artifacts"]["replay"]) / "replay.parquet" for record in ledger.iterations()]
    if len(files) < 2:
        return [], []
    ids = pa.concat_tables(read_groups(files[:1], only(REPLAY, "prompt_id")))["prompt_id"]
    first = np.full(len(ids), np.nan)
    for file in files:
        last: Numbers = pa.concat_tables(read_groups([file], only(REPLAY, "chosen_reward")))["chosen_reward"].to_numpy()
        first = np.where(np.isnan(first), last, first)
    gains, losses = ranked_changes(first, last, count)
    histories = _histories(files, ids.take(pa.array([*gains, *losses], pa.int64())))
    examples = [
        replace(histories[ids[row].as_py()], first=float(first[row]), last=float(last[row]))
        for row in (*gains, *losses)
    ]
    return examples[: len(gains)], examples[len(gains) :]


def ranked_changes(first: Numbers, last: Numbers, count: int) -> tuple[list[int], list[int]]:
    """Return the rows with the largest rise, and those with the largest fall, at most `count` each.

    Args:
        first, last: rewards, NaN where there is none, shape (prompts,).
    """
    change = np.nan_to_num(last - first)
    order = np.argsort(change, kind="stable")
    rises = [int(row) for row in order[::-1][:count] if change[row] > 0]
    falls = [int(row) for row in order[:count] if change[row] < 0]
    return rises, falls


def _histories(files: list[Path], ids: pa.ChunkedArray) -> dict[str, Example]:
    examples: dict[str, Example] = {}
    for iteration, file in enumerate(files):
        for group in read_groups([file], _TEXTS):
            for row in group.filter(pc.is_in(group["prompt_id"], value_set=ids.combine_chunks())).to_pylist():
                example = examples.setdefault(row["prompt_id"], Example(row["prompt_id"], row["prompt"], 0.0, 0.0))
                if row["status"] != "reused":
                    example.versions.append(_version(iteration, row))
    return examples


def _version(iteration: int, row: dict[str, Any]) -> Version:
    sides = ("chosen", "rejected")
    ids = {side: row[f"{side}_token_ids"] for side in sides}
    return Version(
        iteration=iteration,
        status=row["status"],
        reason=row["reason"],
        texts={side: row[side] for side in sides},
        rewards={side: row[f"{side}_reward"] for side in sides},
        tokens={side: None if ids[side] is None else len(ids[side]) for side in sides},
    )
