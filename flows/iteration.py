"""Flow `iteration`: one iteration of OPTune on one screen."""

from __future__ import annotations

from prefect import flow

from flows.evaluation import evaluate
from optune_core.storage import Ref
from tasks.context import RunContext
from tasks.iterate import generate, merge, score, select, split_held_out, take_fixed_pairs
from tasks.report import check_fresh_data, commit_iteration
from tasks.train import train


@flow(name="iteration", flow_run_name="{context.run} iteration {t}")
def iteration(context: RunContext, t: int, previous: Ref, policy: Ref) -> tuple[Ref, Ref]:
    """Rank, regenerate, score, merge, train.

    Args:
        context: the prepared run.
        t: the iteration.
        previous: D_{t-1}; at t = 0 the prompt set.
        policy: π_t.

    Returns:
        (D_t, π_{t+1}).
    """
    (selected,) = select(context, t, previous)
    if context.config.selection.selector == "none":
        responses = take_fixed_pairs(context) if t == 0 else []
    else:
        responses, _ = split_held_out(context, generate(context, t, policy, [selected]))
    drop_truncated = context.config.generation.truncated == "drop"
    scores = score(context, "pairs", context.reward, responses, drop_truncated) if responses else []
    (replay,) = merge(context, t, previous, selected, responses, scores)
    check_fresh_data(context, t, selected, responses, replay)
    evaluate(context, t, policy)
    (trained,) = train(context, t, policy, replay)
    commit_iteration(context, t, selected, responses, scores, replay, policy, trained)
    return replay, trained
