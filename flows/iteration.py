"""Flow `iteration`: one iteration of OPTune on one screen."""

from __future__ import annotations

from dataclasses import dataclass

from prefect import flow

from flows.held_out import score_held_out
from optune_core.storage import Ref
from tasks.health import check_fresh_data
from tasks.iteration import (
    Responses,
    draw,
    fresh_job,
    generate,
    held_out_jobs,
    merge,
    score,
    select,
    take_fixed_pairs,
)
from tasks.records import commit_iteration
from tasks.support.context import RunContext
from tasks.train import begin_training


@flow(name="iteration", flow_run_name="{context.run} iteration {t}")
def iteration(context: RunContext, t: int, previous: Ref, policy: Ref, sampler: Ref) -> tuple[Ref, Ref]:
    """Run iteration t of Algorithm 1: rank, regenerate, score, merge, train.

    Args:
        context: the prepared run.
        t: the number of the iteration, from 0.
        previous: D_{t-1}; at t = 0 the prompt set.
        policy: π_t.
        sampler: the policy that samples the responses: π_t, or π_{t-1} with `generation.ahead`.

    Returns:
        (D_t, π_{t+1}) as references to committed artifacts.
    """
    fresh = respond(context, t, previous, sampler, held_out=sampler == policy)
    staleness = 0 if sampler == policy else 1
    (replay,) = merge(context, t, staleness, previous, fresh.selection, fresh.responses, fresh.scores)
    online = sample_online(context, t, policy)
    responses = [*fresh.responses, *online]
    check_fresh_data(context, t, fresh.selection, responses, replay)
    score_held_out(context, t, policy)
    training = begin_training(context, t, policy, replay, online)
    if context.config.generation.ahead and t + 1 < context.config.iterations:
        respond(context, t + 1, replay, policy, held_out=False)  # iteration t + 1 finds them committed
    (trained,) = training()
    commit_iteration(context, t, fresh.selection, responses, fresh.scores, replay, policy, trained)
    return replay, trained


@dataclass(frozen=True)
class FreshData:
    """Artifacts of an iteration from which its fresh pairs are built."""

    selection: Ref
    responses: list[Ref]
    """Shards; empty where the iteration samples nothing."""
    scores: list[Ref]
    """Shards, in the order of `responses`."""


def respond(context: RunContext, t: int, previous: Ref, sampler: Ref, *, held_out: bool) -> FreshData:
    """Select prompts, sample responses to them and score these.

    Args:
        held_out: True: the same engine also answers the held-out prompts, and the same reward model scores these
            responses.
    """
    (selected,) = select(context, t, previous)
    if context.config.selection.regenerates:
        responses = generate(context, t, sampler, selected, held_out=held_out)
    else:
        responses = Responses(take_fixed_pairs(context) if t == 0 else [], [])
    if not responses.selected:
        return FreshData(selected, [], [])
    jobs = [fresh_job(context, responses.selected), *held_out_jobs(context, responses.held_out)]
    scores, *_ = score(context, jobs)
    return FreshData(selected, responses.selected, scores)


def sample_online(context: RunContext, t: int, policy: Ref) -> list[Ref]:
    """Sample responses of π_t to a random share of the prompts, if the loss has a term on online samples."""
    share = context.config.training.loss.online_share
    if share is None:
        return []
    (drawn,) = draw(context, t, share)
    return generate(context, t, policy, drawn).selected
