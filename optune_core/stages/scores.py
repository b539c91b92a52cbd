"""Stage `scores`: for every response of a shard a reward, or the reason why it has none."""

from __future__ import annotations

import math
import time
from itertools import groupby
from typing import Any

import pyarrow as pa
from pydantic import BaseModel

from optune_core.data.row_groups import count_rows
from optune_core.data.schemas import RESPONSES, SCORES, only, read_table, write_table
from optune_core.data.shards import RESPONSES_FILE, SCORES_FILE
from optune_core.process.background import Background
from optune_core.process.devices import Replicas
from optune_core.process.failpoints import reach
from optune_core.process.progress import Progress
from optune_core.rewards import Conversation, ReadyReward
from optune_core.stages.stage import Stage
from optune_core.storage import ArtifactStore, Ref, Work

VERSION = 3
SCORED = only(RESPONSES, "prompt_id", "prompt", "messages", "sample", "response", "finish_reason")
"""Columns of RESPONSES that scoring reads."""


class ScoringJob(BaseModel):
    """Shards of responses, and the reward that scores them."""

    reward: ReadyReward
    drop_truncated: bool
    """True: truncated responses get the outcome `truncated` and no reward."""
    responses: list[Ref]
    """Shards of responses."""


class Spec(BaseModel):
    """Spec of the stage."""

    jobs: list[ScoringJob]
    """Jobs whose rewards are of one family: all models, or all functions."""
    shards: list[int] | None = None
    """Numbers of the shards to score, counted from 0 over all jobs; None: all shards."""


def works(store: ArtifactStore, spec: Spec) -> list[Work]:
    """Return one work a shard of responses, job after job."""
    return [work for work, _, _ in _shards(spec)]


def replicas(spec: Spec) -> Replicas | None:
    """Return how many reward models run in parallel; None: one process scores, which sees all devices."""
    return spec.jobs[0].reward.side_by_side()


def share(spec: Spec, numbers: list[int]) -> Spec:
    """Return the spec of one of several reward models: only the works with these numbers."""
    return spec.model_copy(update={"shards": numbers})


def run(store: ArtifactStore, spec: Spec, progress: Progress) -> None:
    """Score the shards that are not committed yet; each is committed in the background, while the next is scored.

    A reward is opened once for consecutive jobs that use it.
    """
    missing = [shard for shard in _shards(spec) if store.find(shard[0]) is None]
    total = sum(count_rows(store.fetch(shard) / RESPONSES_FILE) for _, _, shard in missing)
    before = 0
    with Background() as background:
        for reward, shards in groupby(missing, key=lambda shard: shard[1].reward):
            progress("load reward model", before, total)
            scorer = reward.open(store)
            for work, job, shard in shards:
                started = time.monotonic()
                offset = before
                table = score_table(
                    read_table(store.fetch(shard) / RESPONSES_FILE, SCORED),
                    scorer,
                    job.drop_truncated,
                    lambda done, offset=offset: progress("score", offset + done, total),
                )
                reach("scores.scored")
                before += table.num_rows
                timing = {"seconds": time.monotonic() - started, "ended_at": time.time()}
                background.run(_commit, store, work, table, timing)


def _shards(spec: Spec) -> list[tuple[Work, ScoringJob, Ref]]:
    """Return (work, job, shard of responses) of each shard."""
    shards = []
    for job in spec.jobs:
        params = job.reward.scoring | {"drop_truncated": job.drop_truncated}
        model = {"reward": job.reward.model} if job.reward.model else {}
        for shard in job.responses:
            shards.append((Work("scores", VERSION, params, model | {"responses": shard}), job, shard))
    return shards if spec.shards is None else [shards[number] for number in spec.shards]


def _commit(store: ArtifactStore, work: Work, table: pa.Table, timing: dict[str, float]) -> None:
    with store.scratch() as scratch:
        write_table(table, SCORES, scratch / SCORES_FILE)
        store.commit(work, scratch, metrics=_metrics(table), timing=timing)


def score_table(responses: pa.Table, scorer: Any, drop_truncated: bool, done: Any) -> pa.Table:
    """Score responses (schema SCORED) and return one row each (schema SCORES), with a reward or a named outcome."""
    rows = responses.select(["prompt", "messages", "response", "finish_reason"]).to_pylist()
    outcomes = [_outcome(row, drop_truncated) for row in rows]
    usable = [index for index, outcome in enumerate(outcomes) if outcome == "ok"]
    conversations = [
        Conversation(rows[index]["prompt"], rows[index]["messages"], rows[index]["response"]) for index in usable
    ]
    rewards: list[float | None] = [None] * len(rows)
    for index, reward in zip(usable, scorer.score(conversations, done), strict=True):
        if math.isfinite(reward):
            rewards[index] = reward
        else:
            outcomes[index] = "non_finite"
    columns = {
        "prompt_id": responses["prompt_id"],
        "sample": responses["sample"],
        "reward": pa.array(rewards, pa.float64()),
        "outcome": pa.array(outcomes, pa.string()),
    }
    return pa.table(columns, schema=SCORES)


def _outcome(row: dict[str, Any], drop_truncated: bool) -> str:
    if not row["response"].strip():
        return "empty"
    return "truncated" if drop_truncated and row["finish_reason"] == "length" else "ok"


def _metrics(table: pa.Table) -> dict[str, Any]:
    rewards = [reward for reward in table["reward"].to_pylist() if reward is not None]
    outcomes = table["outcome"].to_pylist()
    return {
        "responses": table.num_rows,
        "rm/mean": sum(rewards) / len(rewards) if rewards else None,
        "outcomes": {outcome: outcomes.count(outcome) for outcome in sorted(set(outcomes))},
    }


STAGE = Stage("scores", Spec, works, run, replicas=replicas, share=share)
