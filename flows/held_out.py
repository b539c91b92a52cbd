"""Held-out rewards of a policy: the proxy that is optimised, and the gold reward beside it."""

from __future__ import annotations

from optune_core.storage import Ref
from tasks.iteration import generate, held_out_jobs, score
from tasks.records import commit_held_out
from tasks.support.context import RunContext


def score_held_out(context: RunContext, t: int, policy: Ref) -> None:
    """Score π_t on the held-out prompts (with iteration t's responses, where there were any) and record it."""
    if context.held_out_prompts == 0:
        return
    responses = generate(context, t, policy).held_out
    proxy, *gold = score(context, held_out_jobs(context, responses))
    commit_held_out(context, t, policy, responses, proxy, gold[0] if gold else [])
