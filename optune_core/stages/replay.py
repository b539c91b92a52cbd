"""Stage `replay`: D_t, made by merging fresh pairs into D_{t-1}, or from a fixed preference set."""

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
    """Spec of the stage."""

    iteration: int
    """t."""
    previous: Ref
    """D_{t-1}; at t = 0 the prompt set."""
    selection: Ref
    responses: list[Ref]
    """Shards of responses to the selected prompts."""
    scores: list[Ref]
    """Shards of scores, in the order of `responses`."""
    sampled_from: int
    """Number of the policy that sampled the responses: t, or t - 1 with `generation.ahead`."""
    fixed_pairs: bool = False
    """True: sample 0 is the chosen and sample 1 the rejected response, whatever their rewards are (offline DPO)."""


def works(store: ArtifactStore, spec: Spec) -> list[Work]:
    """Return the one work of the stage."""
    parents = {"previous": spec.previous, "selection": spec.selection}
    parents |= shard_parents("responses", spec.responses) | shard_parents("scores", spec.scores)
    params = {"iteration": spec.iteration, "sampled_from": spec.sampled_from, "fixed_pairs": spec.fixed_pairs}
    return [Work("replay", VERSION, params, parents)]


def run(store: ArtifactStore, spec: Spec, progress: Progress) -> None:
    """Pair the fresh responses, merge the pairs into the replay set, and commit it with its statistics.

    Raises:
        ConservationError: a prompt is lost or appears twice: the selected prompts are not the fresh pairs plus those
            without a pair for a named reason.
    """
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
    """Return how often each value occurs, without nulls."""
    return {entry["values"]: entry["counts"] for entry in pc.value_counts(values.drop_null()).to_pylist()}


STAGE = Stage("replay", Spec, works, run, in_process=True)
