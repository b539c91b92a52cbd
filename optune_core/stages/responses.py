"""Stage `responses`: K responses a prompt, sampled from a policy in shards by one engine or several in parallel."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from pydantic import BaseModel

from optune_core.data.row_groups import read_rows
from optune_core.data.schemas import PROMPTS, RESPONSES, write_table
from optune_core.data.shards import RESPONSES_FILE
from optune_core.errors import ConservationError
from optune_core.generation import Request, Response, sampling_seed
from optune_core.generation.section import Sampling
from optune_core.process.background import Background
from optune_core.process.devices import Replicas
from optune_core.process.failpoints import reach
from optune_core.process.progress import Progress
from optune_core.stages.stage import Stage
from optune_core.storage import ArtifactStore, Ref, Work

VERSION = 3


class GenerationJob(BaseModel):
    """A table of prompts, and how many responses are sampled to each."""

    prompts: Ref
    """The artifact that holds the table."""
    file: str
    """File name of the table in the artifact."""
    rows: int
    """Number of prompts in the table."""
    samples: int
    """Responses a prompt."""


class Spec(BaseModel):
    """Spec of the stage."""

    sampling: Sampling
    max_prompt_tokens: int
    seed: int
    iteration: int
    policy: Ref
    jobs: list[GenerationJob]
    shards: list[int] | None = None
    """Numbers of the shards to make, counted from 0 over all jobs; None: all shards."""

    def shards_of(self, job: GenerationJob) -> int:
        """Return the number of shards of a job."""
        return math.ceil(job.rows / self.sampling.shard_size)


def works(store: ArtifactStore, spec: Spec) -> list[Work]:
    """Return one work a shard, job after job."""
    return [work for work, _, _ in _shards(spec)]


def replicas(spec: Spec) -> Replicas:
    """Return how many engines run in parallel, and on which devices."""
    return spec.sampling.engine.side_by_side("generation.engine")


def share(spec: Spec, numbers: list[int]) -> Spec:
    """Return the spec of one of several engines: only the works with these numbers."""
    return spec.model_copy(update={"shards": numbers})


@dataclass
class _Shard:
    """A shard whose requests have entered the engine."""

    work: Work
    prompts: pa.Table
    samples: int
    responses: dict[int, Response] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        expected: int = self.prompts.num_rows * self.samples
        return len(self.responses) == expected


def run(store: ArtifactStore, spec: Spec, progress: Progress) -> None:
    """Generate the shards that are not committed yet.

    A shard is committed in the background, when its last response has arrived. Its prompts are read when the engine
    takes its first request.

    Raises:
        ConservationError: the engine answered fewer or more requests than it was given.
    """
    missing = [shard for shard in _shards(spec) if store.find(shard[0]) is None]
    total = sum(rows[1] * job.samples for _, job, rows in missing)
    progress("start engine", 0, 0)
    started = time.monotonic()
    policy = store.fetch(spec.policy, "model/*") / "model"
    sampler = spec.sampling.engine.start(
        spec.sampling, policy, max_tokens=spec.max_prompt_tokens + spec.sampling.max_tokens
    )
    entered: dict[int, _Shard] = {}

    def requests() -> Iterator[Request]:
        for number, (work, job, rows) in enumerate(missing):
            prompts = read_rows(store.fetch(job.prompts) / job.file, PROMPTS, *rows)
            entered[number] = _Shard(work, prompts, job.samples)
            yield from _requests(number, prompts, job.samples, spec)

    now = time.monotonic()
    engine_start, done = now - started, 0
    with Background() as background:
        for response in sampler.generate(requests()):
            reach("responses.response")
            shard = entered[response.shard]
            shard.responses[response.index] = response
            done += 1
            progress("generate", done, total)
            if shard.complete:
                del entered[response.shard]
                before, now = now, time.monotonic()
                # Shards may overlap in time, so a shard's seconds count from the end of the one before: they sum up.
                timing = {"seconds": now - before, "engine_start_seconds": engine_start, "ended_at": time.time()}
                background.run(_commit, store, shard, timing)
                engine_start = 0.0
        if done != total:
            raise ConservationError(f"the engine answered {done} of {total} requests")


def _commit(store: ArtifactStore, shard: _Shard, timing: dict[str, float]) -> None:
    table = _table(shard)
    with store.scratch() as scratch:
        write_table(table, RESPONSES, scratch / RESPONSES_FILE)
        store.commit(shard.work, scratch, metrics=_metrics(table), timing=timing)


def _shards(spec: Spec) -> list[tuple[Work, GenerationJob, tuple[int, int]]]:
    """Return (work, job, (first row, number of rows)) of each shard."""
    size = spec.sampling.shard_size
    shards = []
    for job in spec.jobs:
        for first in range(0, job.rows, size):
            rows = (first, min(size, job.rows - first))
            params = spec.sampling.identity() | {
                "samples": job.samples,
                "max_prompt_tokens": spec.max_prompt_tokens,
                "seed": spec.seed,
                "iteration": spec.iteration,
                "file": job.file,
                "rows": list(rows),
            }
            parents = {"policy": spec.policy, "prompts": job.prompts}
            shards.append((Work("responses", VERSION, params, parents), job, rows))
    return shards if spec.shards is None else [shards[number] for number in spec.shards]


def _requests(shard: int, prompts: pa.Table, samples: int, spec: Spec) -> Iterator[Request]:
    ids = zip(prompts["prompt_id"].to_pylist(), prompts["prompt_token_ids"].to_pylist(), strict=True)
    for row, (prompt_id, token_ids) in enumerate(ids):
        for sample in range(samples):  # consecutive, so that they share the prompt's prefix in the engine's cache
            seed = sampling_seed(spec.seed, spec.iteration, prompt_id, sample)
            yield Request(shard=shard, index=row * samples + sample, prompt_token_ids=token_ids, seed=seed)


def _table(shard: _Shard) -> pa.Table:
    prompts, samples = shard.prompts, shard.samples
    given = [shard.responses[index] for index in range(len(shard.responses))]
    rows = pa.array([row for row in range(prompts.num_rows) for _ in range(samples)], pa.int64())
    columns: dict[str, Any] = {name: prompts[name].take(rows) for name in PROMPTS.names}
    columns["sample"] = pa.array([sample for _ in range(prompts.num_rows) for sample in range(samples)], pa.int32())
    columns["response"] = [response.text for response in given]
    columns["response_token_ids"] = [response.token_ids for response in given]
    columns["finish_reason"] = [response.finish_reason for response in given]
    columns["policy_logps"] = [response.logp for response in given]
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


STAGE = Stage("responses", Spec, works, run, replicas=replicas, share=share)
