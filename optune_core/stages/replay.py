"""Stage `replay`: D_t, the fresh pairs merged into the replay set; or D of a fixed preference set."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import pyarrow as pa
from pydantic import BaseModel

from optune_core.progress import Progress
from optune_core.replay import fresh_pairs, given_pairs, merge, pair_responses
from optune_core.reports.statistics import replay_statistics
from optune_core.schemas import PROMPTS, REPLAY, RESPONSES, SCORES, read_table, write_table
from optune_core.stages.selection import load_replay
from optune_core.storage import ArtifactStore, Ref, Work

VERSION = 1
FILE = "replay.parquet"


class Spec(BaseModel):
    iteration: int
    previous: dict[str, str]
    """Reference to D_{t-1}, or to the prompt set."""
    selection: dict[str, str]
    responses: list[dict[str, str]]
    scores: list[dict[str, str]]
    """References to the shards, in the order of `responses`."""
    fixed_pairs: bool = False
    """Sample 0 is the chosen and sample 1 the rejected response, whatever the reward says (offline DPO)."""


def works(store: ArtifactStore, spec: Spec) -> list[Work]:
    """One work."""
    parents = {"previous": Ref.from_json(spec.previous), "selection": Ref.from_json(spec.selection)}
    for name, shards in (("responses", spec.responses), ("scores", spec.scores)):
        parents |= {f"{name}/{index:05d}": Ref.from_json(shard) for index, shard in enumerate(shards)}
    params = {"iteration": spec.iteration, "fixed_pairs": spec.fixed_pairs}
    return [Work("replay", VERSION, params, parents)]


def run(store: ArtifactStore, spec: Spec, progress: Progress) -> None:
    """Raises ConservationError if prompts in are not pairs out plus named drops."""
    (work,) = works(store, spec)
    started = time.monotonic()
    previous = load_replay(store, Ref.from_json(spec.previous))
    selection = read_table(store.fetch(Ref.from_json(spec.selection)) / "selection.parquet", PROMPTS)
    responses = read_shards(store, spec.responses, "responses.parquet", RESPONSES)
    scores = read_shards(store, spec.scores, "scores.parquet", SCORES)
    selected = selection["prompt_id"].to_pylist()
    if spec.fixed_pairs:
        selected = previous["prompt_id"].to_pylist()
    pairs = given_pairs(scores) if spec.fixed_pairs else pair_responses(responses, scores)
    reasons = {prompt_id: pair for prompt_id, pair in pairs.items() if isinstance(pair, str)}
    replay = merge(previous, selected, fresh_pairs(responses, scores, pairs, spec.iteration), reasons)
    with store.scratch() as scratch:
        write_table(replay, REPLAY, scratch / FILE)
        status = Counter(replay["status"].to_pylist())
        metrics: dict[str, Any] = {
            "prompts": replay.num_rows,
            "status": dict(sorted(status.items())),
            "reasons": dict(sorted(Counter(reasons.values()).items())),
            **replay_statistics(previous, replay, spec.iteration),
        }
        store.commit(work, scratch, metrics=metrics, timing={"seconds": time.monotonic() - started})


def read_shards(store: ArtifactStore, shards: list[dict[str, str]], file: str, schema: pa.Schema) -> pa.Table:
    """The tables of several shards as one."""
    tables = [read_table(store.fetch(Ref.from_json(shard)) / file, schema) for shard in shards]
    return pa.concat_tables(tables) if tables else schema.empty_table()
