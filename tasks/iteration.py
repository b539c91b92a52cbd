"""Tasks of one iteration (Algorithm 1), one for each stage."""

from __future__ import annotations

from dataclasses import dataclass
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
    """Select the prompts that iteration t regenerates: those that the selector of the run ranks lowest."""
    spec = selection.Spec(
        selector=context.config.selection,
        seed=context.config.seed,
        iteration=iteration,
        previous=previous,
    )
    return make(context.store, "selection", spec)


@dataclass(frozen=True)
class Responses:
    """Shards of a policy's responses."""

    selected: list[Ref]
    """Responses to the selected prompts, K a prompt."""
    held_out: list[Ref]
    """Responses to the held-out prompts, `held_out.samples` a prompt."""


def generate(
    context: RunContext, iteration: int, policy: Ref, selected: Ref | None = None, *, held_out: bool = True
) -> Responses:
    """Sample responses of a policy to the selected prompts and to the held-out ones, by the same engines.

    Args:
        selected: a selection; None: only the held-out prompts are answered.
        held_out: whether the held-out prompts are answered.
    """
    jobs = [] if selected is None else [_selected_job(context, selected)]
    if held_out and context.held_out_prompts:
        jobs.append(_held_out_job(context))
    config = context.config
    spec = responses.Spec(
        sampling=config.generation.sampling,
        max_prompt_tokens=config.prompts.max_tokens,
        seed=config.seed,
        iteration=iteration,
        policy=policy,
        jobs=jobs,
    )
    made = iter(_generate(context, iteration, spec))
    shards = {job.file: list(islice(made, spec.shards_of(job))) for job in jobs}
    return Responses(shards.get(SELECTION_FILE, []), shards.get(HELD_OUT_PROMPTS_FILE, []))


@stage_task("generate")
def _generate(context: RunContext, iteration: int, spec: responses.Spec) -> Any:
    return make(context.store, "responses", spec)


@stage_task("draw")
def draw(context: RunContext, iteration: int, share: float) -> Any:
    """Draw a random share of the prompts, to which the online samples of the loss are responses."""
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
    """Turn the data set's own pairs into responses, for offline DPO."""
    return make(context.store, "fixed-pairs", fixed_pairs.Spec(prompts=context.prompts, policy=context.policy))


@stage_task("score", "score by {family}")
def _score(context: RunContext, family: str, jobs: list[scores.ScoringJob]) -> Any:
    return make(context.store, "scores", scores.Spec(jobs=jobs))


def score(context: RunContext, jobs: list[scores.ScoringJob]) -> list[list[Ref]]:
    """Score responses and return, for each job, the shards of its scores. Adjacent jobs of one family are one task."""
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
        staleness: iterations by which the policy that sampled the responses is older than π_t.
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


def fresh_job(context: RunContext, shards: list[Ref]) -> scores.ScoringJob:
    """Return the job that scores responses to the selected prompts, by the proxy."""
    assert context.reward is not None
    return scores.ScoringJob(
        reward=context.reward,
        drop_truncated=context.config.generation.truncated == "drop",
        responses=shards,
    )


def held_out_jobs(context: RunContext, shards: list[Ref]) -> list[scores.ScoringJob]:
    """Return the jobs that score responses to the held-out prompts, by the proxy and by the gold reward, if any."""
    rewards = [reward for reward in (context.reward, context.gold) if reward is not None and shards]
    return [scores.ScoringJob(reward=reward, drop_truncated=False, responses=shards) for reward in rewards]


def _selected_job(context: RunContext, selected: Ref) -> responses.GenerationJob:
    rows = open_store(context.store).manifest(selected).metrics["selected"]
    return responses.GenerationJob(
        prompts=selected, file=SELECTION_FILE, rows=rows, samples=context.config.generation.samples
    )


def _held_out_job(context: RunContext) -> responses.GenerationJob:
    return responses.GenerationJob(
        prompts=context.prompts,
        file=HELD_OUT_PROMPTS_FILE,
        rows=context.held_out_prompts,
        samples=context.config.held_out.samples,
    )
