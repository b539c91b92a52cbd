"""Stage `responses`: K responses a prompt from the policy, shard by shard in one engine."""

from __future__ import annotations

import math
import time
from typing import Any

import pyarrow as pa
from pydantic import BaseModel

from optune_core.config.schema import Generation
from optune_core.errors import ConservationError
from optune_core.failpoints import reach
from optune_core.generation import Request, Response, open_engine, sampling_seed
from optune_core.progress import Progress
from optune_core.row_groups import read_rows
from optune_core.schemas import PROMPTS, RESPONSES, write_table
from optune_core.storage import ArtifactStore, Ref, Work

VERSION = 2
FILE = "responses.parquet"


class Job(BaseModel):
    """A table of prompts to answer."""

    prompts: dict[str, str]
    """Reference to the artifact that holds it."""
    file: str
    rows: int
    samples: int


class Spec(BaseModel):
    generation: Generation
    max_prompt_tokens: int
    seed: int
    iteration: int
    policy: dict[str, str]
    jobs: list[Job]


def works(store: ArtifactStore, spec: Spec) -> list[Work]:
    """One work a shard, job after job."""
    return [work for work, _, _ in _shards(spec)]


def run(store: ArtifactStore, spec: Spec, progress: Progress) -> None:
    """Generate the shards that are missing, each from a cold prefix cache.

    A shard's batches then depend on nothing but the shard, and an interrupted run samples what an uninterrupted
    one does.
    """
    missing = [shard for shard in _shards(spec) if store.find(shard[0]) is None]
    total = sum(rows[1] * job.samples for _, job, rows in missing)
    progress("start engine", 0, 0)
    started = time.monotonic()
    policy = store.fetch(Ref.from_json(spec.policy)) / "model"
    engine = open_engine(spec.generation, policy, max_tokens=spec.max_prompt_tokens + spec.generation.max_tokens)
    engine_start = time.monotonic() - started
    done = 0
    for work, job, (first, count) in missing:
        started = time.monotonic()
        prompts = read_rows(store.fetch(Ref.from_json(job.prompts)) / job.file, PROMPTS, first, count)
        requests = _requests(prompts, job.samples, spec)
        responses: list[Response | None] = [None] * len(requests)
        for response in engine.generate(requests):
            reach("responses.response")
            responses[response.index] = response
            done += 1
            progress("generate", done, total)
        table = _table(prompts, job.samples, responses)
        with store.scratch() as scratch:
            write_table(table, RESPONSES, scratch / FILE)
            store.commit(
                work,
                scratch,
                metrics=_metrics(table),
                timing={"seconds": time.monotonic() - started, "engine_start_seconds": engine_start},
            )
        engine_start = 0.0


def _shards(spec: Spec) -> list[tuple[Work, Job, tuple[int, int]]]:
    size = spec.generation.shard_size
    shards = []
    for job in spec.jobs:
        for first in range(0, job.rows, size):
            rows = (first, min(size, job.rows - first))
            params = spec.generation.model_dump(mode="json", exclude={"samples", "truncated", "shard_size"})
            params |= {
                "samples": job.samples,
                "max_prompt_tokens": spec.max_prompt_tokens,
                "seed": spec.seed,
                "iteration": spec.iteration,
                "file": job.file,
                "rows": list(rows),
            }
            parents = {"policy": Ref.from_json(spec.policy), "prompts": Ref.from_json(job.prompts)}
            shards.append((Work("responses", VERSION, params, parents), job, rows))
    return shards


def _requests(prompts: pa.Table, samples: int, spec: Spec) -> list[Request]:
    return [
        Request(
            index=row * samples + sample,
            prompt_token_ids=token_ids,
            seed=sampling_seed(spec.seed, spec.iteration, prompt_id, sample),
        )
        for row, (prompt_id, token_ids) in enumerate(
            zip(prompts["prompt_id"].to_pylist(), prompts["prompt_token_ids"].to_pylist(), strict=True)
        )
        for sample in range(samples)
    ]


def _table(prompts: pa.Table, samples: int, responses: list[Response | None]) -> pa.Table:
    rows = pa.array([row for row in range(prompts.num_rows) for _ in range(samples)], pa.int64())
    given = [response for response in responses if response is not None]
    if len(given) != len(responses):
        raise ConservationError(f"the engine answered {len(given)} of {len(responses)} requests")
    columns: dict[str, Any] = {name: prompts[name].take(rows) for name in PROMPTS.names}
    columns["sample"] = pa.array([sample for _ in range(prompts.num_rows) for sample in range(samples)], pa.int32())
    columns["response"] = [response.text for response in given]
    columns["response_token_ids"] = [response.token_ids for response in given]
    columns["finish_reason"] = [response.finish_reason for response in given]
    columns["policy_logps"] = pa.nulls(len(given), pa.float64())
    return pa.table({name: columns[name] for name in RESPONSES.names}, schema=RESPONSES)


def _metrics(table: pa.Table) -> dict[str, Any]:
    lengths = [len(ids) for ids in table["response_token_ids"].to_pylist()]
    truncated = sum(reason == "length" for reason in table["finish_reason"].to_pylist())
    return {
        "responses": table.num_rows,
        "tokens": sum(lengths),
        "mean_tokens": sum(lengths) / max(1, len(lengths)) if lengths else math.nan,
        "truncated": truncated,
        "distinct": len({tuple(ids) for ids in table["response_token_ids"].to_pylist()}),
    }
