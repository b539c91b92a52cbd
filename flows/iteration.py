"""Flow `iteration`: one iteration of OPTune on one screen."""

from __future__ import annotations

from prefect import flow

from flows.held_out import score_held_out
from optune_core.storage import Ref
from tasks.iteration import (
    draw,
    fresh_job,
    generate,
    held_out_jobs,
    merge,
    score,
    select,
    split_held_out,
    take_fixed_pairs,
)
from tasks.records import check_fresh_data, commit_iteration
from tasks.support.context import RunContext
from tasks.train import begin_training


@flow(name="iteration", flow_run_name="{context.run} iteration {t}")
def iteration(context: RunContext, t: int, previous: Ref, policy: Ref, sampler: Ref) -> tuple[Ref, Ref]:
    """Rank, regenerate, score, merge, train.

    Args:
        context: the prepared run.
        t: the iteration.
        previous: D_{t-1}; at t = 0 the prompt set.
        policy: π_t.
        sampler: the policy that responses are sampled from: π_t, or π_{t-1} where they were sampled ahead.

    Returns:
        (D_t, π_{t+1}).
    """
    selected, responses, scores = respond(context, t, previous, sampler, held_out=sampler == policy)
    staleness = 0 if sampler == policy else 1
    (replay,) = merge(context, t, staleness, previous, selected, responses, scores)
    online = sample_online(context, t, policy)
    responses = [*responses, *online]
    check_fresh_data(context, t, selected, responses, replay)
    score_held_out(context, t, policy)
    training = begin_training(context, t, policy, replay, online)
    if context.config.generation.ahead and t + 1 < context.config.iterations:
        respond(context, t + 1, replay, policy, held_out=False)  # iteration t + 1 finds it
    (trained,) = training()
    commit_iteration(context, t, selected, responses, scores, replay, policy, trained)
    return replay, trained


def respond(
    context: RunContext, t: int, previous: Ref, sampler: Ref, *, held_out: bool
) -> tuple[Ref, list[Ref], list[Ref]]:
    """Rank, regenerate, score: (selection, responses, scores) of iteration t.

    Args:
        held_out: the same engine answers the held-out prompts too, and the same reward model scores the answers.
    """
    (selected,) = select(context, t, previous)
    held_out_responses: list[Ref] = []
    if not context.config.selection.regenerates:
        responses = take_fixed_pairs(context) if t == 0 else []
    elif held_out:
        responses, held_out_responses = split_held_out(context, generate(context, t, sampler, [selected]))
    else:
        responses = generate(context, t, sampler, [selected], held_out=False)
    if not responses:
        return selected, [], []
    scores, *_ = score(context, [fresh_job(context, responses), *held_out_jobs(context, held_out_responses)])
    return selected, responses, scores


def sample_online(context: RunContext, t: int, policy: Ref) -> list[Ref]:
    """Sample responses of π_t to a random share of the prompts, where the loss has a term on such."""
    share = context.config.training.loss.online_share
    if share is None:
        return []
    (drawn,) = draw(context, t, share)
    responses, _ = split_held_out(context, generate(context, t, policy, [drawn]))
    return responses
