"""The stages of one iteration as tasks (Algorithm 1)."""

from __future__ import annotations

import math
from itertools import groupby, islice
from typing import Any

from optune_core.config.schema import FunctionReward, Selection
from optune_core.stages import fixed_pairs, replay, responses, scores, selection
from optune_core.stages import prompts as prompts_stage
from optune_core.storage import Ref
from tasks.support.context import RunContext
from tasks.support.stage import make, open_store, stage_task


@stage_task("select")
def select(context: RunContext, iteration: int, previous: Ref) -> Any:
    """Rank the prompts by the reward of their chosen response; take the bottom ρ."""
    spec = selection.Spec(
        selection=context.config.selection,
        seed=context.config.seed,
        iteration=iteration,
        previous=previous.to_json(),
    )
    return make(context.store, "selection", spec)


@stage_task("generate")
def generate(context: RunContext, iteration: int, policy: Ref, prompts: list[Ref], held_out: bool = True) -> Any:
    """Sample K responses from the policy for each of these prompts, and for the held-out ones, by the same engines.

    Args:
        prompts: references to a selection; empty to answer the held-out prompts only.
        held_out: answer those too.
    """
    jobs = [selected_job(context, ref) for ref in prompts]
    jobs += held_out_job(context) if held_out else []
    return make(context.store, "responses", generation_spec(context, iteration, policy, jobs))


@stage_task("draw")
def draw(context: RunContext, iteration: int) -> Any:
    """HyPO: a random share ρ of the prompts, for online samples."""
    spec = selection.Spec(
        selection=Selection(selector="random", rho=context.config.selection.rho),
        seed=context.config.seed,
        iteration=iteration,
        previous=context.prompts,
        all_at_first=False,
    )
    return make(context.store, "selection", spec)


@stage_task("take fixed pairs")
def take_fixed_pairs(context: RunContext) -> Any:
    """Offline DPO: the data set's own pairs."""
    return make(context.store, "fixed-pairs", fixed_pairs.Spec(prompts=context.prompts, policy=context.policy))


@stage_task("score", "score by {kind}")
def _score(context: RunContext, kind: str, jobs: list[scores.Job]) -> Any:
    replicas = None if isinstance(context.config.reward, FunctionReward) else context.config.reward.replicas
    return make(context.store, "scores", scores.Spec(jobs=jobs, replicas=replicas))


def score(context: RunContext, jobs: list[scores.Job]) -> list[list[Ref]]:
    """Rewards of responses: of each job, those of its shards. What models score is one task, and what functions do."""
    made: list[list[Ref]] = []
    for kind, group in groupby(jobs, key=lambda job: job.reward.type):
        alike = list(group)
        references = iter(_score(context, kind, alike))
        made += [list(islice(references, len(job.responses))) for job in alike]
    return made


@stage_task("merge")
def merge(
    context: RunContext,
    iteration: int,
    staleness: int,
    previous: Ref,
    selected: Ref,
    response_shards: list[Ref],
    score_shards: list[Ref],
) -> Any:
    """Pair the fresh responses and merge them into the replay set; all other prompts keep their pair.

    Args:
        staleness: iterations by which the policy that sampled them is older than π_t.
    """
    spec = replay.Spec(
        iteration=iteration,
        previous=previous.to_json(),
        selection=selected.to_json(),
        responses=[shard.to_json() for shard in response_shards],
        scores=[shard.to_json() for shard in score_shards],
        sampled_from=iteration - staleness,
        fixed_pairs=context.config.selection.selector == "none" and iteration == 0,
    )
    return make(context.store, "replay", spec)


def split_held_out(context: RunContext, shards: list[Ref]) -> tuple[list[Ref], list[Ref]]:
    """What `generate` returned, as (shards of the selected prompts, shards of the held-out prompts)."""
    held_out = math.ceil(context.held_out_prompts / context.config.generation.shard_size)
    return shards[: len(shards) - held_out], shards[len(shards) - held_out :]


def fresh_job(context: RunContext, shards: list[Ref]) -> scores.Job:
    """The proxy's rewards of the selected prompts' responses."""
    assert context.reward is not None
    return scores.Job(
        reward=context.reward,
        drop_truncated=context.config.generation.truncated == "drop",
        responses=[shard.to_json() for shard in shards],
    )


def held_out_jobs(context: RunContext, shards: list[Ref]) -> list[scores.Job]:
    """The proxy's rewards of the held-out prompts' responses, and the gold ones; empty where there are none."""
    rewards = [reward for reward in (context.reward, context.gold) if reward is not None and shards]
    responses = [shard.to_json() for shard in shards]
    return [scores.Job(reward=reward, drop_truncated=False, responses=responses) for reward in rewards]


def generation_spec(context: RunContext, iteration: int, policy: Ref, jobs: list[responses.Job]) -> responses.Spec:
    """What `generate` asks the stage for."""
    config = context.config
    return responses.Spec(
        generation=config.generation,
        max_prompt_tokens=config.prompts.max_tokens,
        seed=config.seed,
        iteration=iteration,
        policy=policy.to_json(),
        jobs=jobs,
    )


def selected_job(context: RunContext, selected: Ref) -> responses.Job:
    """The selected prompts, K responses each."""
    rows = open_store(context.store).manifest(selected).metrics["selected"]
    return responses.Job(
        prompts=selected.to_json(), file=selection.FILE, rows=rows, samples=context.config.generation.samples
    )


def held_out_job(context: RunContext) -> list[responses.Job]:
    """The held-out prompts, if the run has any."""
    if context.held_out_prompts == 0:
        return []
    return [
        responses.Job(
            prompts=context.prompts,
            file=prompts_stage.HELD_OUT,
            rows=context.held_out_prompts,
            samples=context.config.evaluation.samples,
        )
    ]
