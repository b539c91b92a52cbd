"""Stage `replay`: D_t, the fresh pairs merged into the replay set; or D of a fixed preference set."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel

from optune_core.data.row_groups import read_groups, write_groups
from optune_core.data.schemas import REPLAY, SCORES, only
from optune_core.data.shards import (
    REPLAY_FILE,
    RESPONSES_FILE,
    SCORES_FILE,
    SELECTION_FILE,
    shard_files,
    shard_parents,
)
from optune_core.pairs import as_given, best_against_worst
from optune_core.process.progress import Progress
from optune_core.replay import PAIRED_RESPONSES, accounted, fresh_pairs, merge, require_each_once, scored
from optune_core.stages.selection import read_replay
from optune_core.stages.stage import Stage
from optune_core.statistics import replay_statistics, without_texts
from optune_core.storage import ArtifactStore, Ref, Work

VERSION = 3


class Spec(BaseModel):
    iteration: int
    previous: Ref
    """D_{t-1}, or to the prompt set."""
    selection: Ref
    responses: list[Ref]
    scores: list[Ref]
    """Shards, in the order of `responses`."""
    sampled_from: int
    """Iteration of the policy that sampled the responses."""
    fixed_pairs: bool = False
    """Sample 0 is the chosen and sample 1 the rejected response, whatever the reward says (offline DPO)."""


def works(store: ArtifactStore, spec: Spec) -> list[Work]:
    """One work."""
    parents = {"previous": spec.previous, "selection": spec.selection}
    parents |= shard_parents("responses", spec.responses) | shard_parents("scores", spec.scores)
    params = {"iteration": spec.iteration, "sampled_from": spec.sampled_from, "fixed_pairs": spec.fixed_pairs}
    return [Work("replay", VERSION, params, parents)]


def run(store: ArtifactStore, spec: Spec, progress: Progress) -> None:
    """Raises ConservationError if prompts in are not pairs out plus named drops."""
    (work,) = works(store, spec)
    started = time.monotonic()
    previous = spec.previous
    ids = only(REPLAY, "prompt_id")
    require_each_once(pa.concat_tables(read_replay(store, previous, ids))["prompt_id"])
    responses = read_groups(shard_files(store, spec.responses, RESPONSES_FILE), PAIRED_RESPONSES)
    scores = read_groups(shard_files(store, spec.scores, SCORES_FILE), SCORES)
    rule = as_given if spec.fixed_pairs else best_against_worst
    fresh = fresh_pairs(scored(responses, scores), rule, spec.iteration, spec.sampled_from)
    selection = shard_files(store, [spec.selection], SELECTION_FILE)
    selected = read_replay(store, previous, ids) if spec.fixed_pairs else read_groups(selection, ids)
    reasons: Counter[str] = Counter()
    status: Counter[str] = Counter()
    narrow: list[pa.Table] = []

    def counted_fresh() -> Iterator[pa.Table]:
        for table in accounted(selected, fresh):
            reasons.update(_counts(table["reason"]))
            yield table

    def counted() -> Iterator[pa.Table]:
        for table in merge(read_replay(store, previous, REPLAY), counted_fresh()):
            status.update(_counts(table["status"]))
            narrow.append(without_texts(table))
            yield table

    with store.scratch() as scratch:
        write_groups(counted(), REPLAY, scratch / REPLAY_FILE)
        before = pa.concat_tables(read_replay(store, previous, only(REPLAY, "chosen_reward")))
        metrics: dict[str, Any] = {
            "prompts": before.num_rows,
            "status": dict(sorted(status.items())),
            "reasons": dict(sorted(reasons.items())),
            **replay_statistics(before["chosen_reward"], pa.concat_tables(narrow), spec.iteration),
        }
        store.commit(work, scratch, metrics=metrics, timing={"seconds": time.monotonic() - started})


def _counts(values: pa.ChunkedArray) -> dict[str, int]:
    """How often each value stands there; null is none."""
    return {entry["values"]: entry["counts"] for entry in pc.value_counts(values.drop_null()).to_pylist()}


STAGE = Stage("replay", Spec, works, run, in_process=True)
