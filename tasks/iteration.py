"""The stages of one iteration as tasks (Algorithm 1)."""

from __future__ import annotations

import math
from itertools import groupby, islice
from typing import Any

from optune_core.data.shards import HELD_OUT_PROMPTS_FILE, SELECTION_FILE
from optune_core.selection.random_share import Random
from optune_core.stages import fixed_pairs, replay, responses, scores, selection
from optune_core.storage import Ref
from tasks.support.context import RunContext
from tasks.support.stage import make, open_store, stage_task


@stage_task("select")
def select(context: RunContext, iteration: int, previous: Ref) -> Any:
    """Rank the prompts by the reward of their chosen response; take the bottom ρ."""
    spec = selection.Spec(
        selector=context.config.selection,
        seed=context.config.seed,
        iteration=iteration,
        previous=previous,
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
def draw(context: RunContext, iteration: int, share: float) -> Any:
    """Draw a random share of the prompts, for the online samples of the loss."""
    spec = selection.Spec(
        selector=Random(rho=share),
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


@stage_task("score", "score by {family}")
def _score(context: RunContext, family: str, jobs: list[scores.Job]) -> Any:
    return make(context.store, "scores", scores.Spec(jobs=jobs))


def score(context: RunContext, jobs: list[scores.Job]) -> list[list[Ref]]:
    """Score responses: for each job, the rewards of its shards. Jobs of one family of rewards are one task."""
    made: list[list[Ref]] = []
    for family, group in groupby(jobs, key=lambda job: job.reward.reward.family):
        together = list(group)
        references = iter(_score(context, family, together))
        made += [list(islice(references, len(job.responses))) for job in together]
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
        previous=previous,
        selection=selected,
        responses=response_shards,
        scores=score_shards,
        sampled_from=iteration - staleness,
        fixed_pairs=not context.config.selection.regenerates and iteration == 0,
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
        responses=shards,
    )


def held_out_jobs(context: RunContext, shards: list[Ref]) -> list[scores.Job]:
    """The proxy's rewards of the held-out prompts' responses, and the gold ones; empty where there are none."""
    rewards = [reward for reward in (context.reward, context.gold) if reward is not None and shards]
    return [scores.Job(reward=reward, drop_truncated=False, responses=shards) for reward in rewards]


def generation_spec(context: RunContext, iteration: int, policy: Ref, jobs: list[responses.Job]) -> responses.Spec:
    """What `generate` asks the stage for."""
    config = context.config
    return responses.Spec(
        sampling=config.generation.sampling,
        max_prompt_tokens=config.prompts.max_tokens,
        seed=config.seed,
        iteration=iteration,
        policy=policy,
        jobs=jobs,
    )


def selected_job(context: RunContext, selected: Ref) -> responses.Job:
    """The selected prompts, K responses each."""
    rows = open_store(context.store).manifest(selected).metrics["selected"]
    return responses.Job(prompts=selected, file=SELECTION_FILE, rows=rows, samples=context.config.generation.samples)


def held_out_job(context: RunContext) -> list[responses.Job]:
    """The held-out prompts, if the run has any."""
    if context.held_out_prompts == 0:
        return []
    return [
        responses.Job(
            prompts=context.prompts,
            file=HELD_OUT_PROMPTS_FILE,
            rows=context.held_out_prompts,
            samples=context.config.held_out.samples,
        )
    ]
