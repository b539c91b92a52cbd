"""Held-out rewards of a policy: by the proxy, which is optimised, and by the gold reward, which is only reported."""

from __future__ import annotations

from optune_core.storage import Ref
from tasks.iteration import generate, held_out_jobs, score
from tasks.records import commit_held_out
from tasks.support.context import RunContext


def score_held_out(context: RunContext, t: int, policy: Ref) -> None:
    """Score π_t's responses to the held-out prompts and commit the rewards to the ledger.

    Responses that iteration t sampled already are found committed and used again.
    """
    if context.held_out_prompts == 0:
        return
    responses = generate(context, t, policy).held_out
    proxy, *gold = score(context, held_out_jobs(context, responses))
    commit_held_out(context, t, policy, responses, proxy, gold[0] if gold else [])
