"""From K scored responses to one preference pair a prompt, or to a named reason why there is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Candidate:
    """One scored response to a prompt."""

    sample: int
    token_ids: tuple[int, ...]
    reward: float | None
    outcome: str
    """`ok`, or why the response cannot enter a pair."""


@dataclass(frozen=True)
class Pair:
    chosen: int
    """Sample number of the response with the highest reward."""
    rejected: int
    """Sample number of the response with the lowest reward."""


def best_against_worst(candidates: Sequence[Candidate]) -> Pair | str:
    """The pair of a prompt: highest against lowest reward (with K = 2, the paper's pair).

    Equal rewards are settled by the lower sample number, equally for both ends.

    Args:
        candidates: the K responses of one prompt.

    Returns:
        The pair, or the reason there is none: `no_response` (none was given), `one_left:<outcomes>` (fewer than
        two usable responses), `identical` (all usable responses are the same tokens), `tied` (all rewards equal).
    """
    if not candidates:
        return "no_response"
    usable = sorted((c for c in candidates if c.outcome == "ok"), key=lambda c: c.sample)
    if len(usable) < 2:
        return "one_left:" + ",".join(sorted({c.outcome for c in candidates if c.outcome != "ok"}))
    if len({c.token_ids for c in usable}) == 1:
        return "identical"
    rewards = [_reward(c) for c in usable]
    if max(rewards) == min(rewards):
        return "tied"
    chosen = max(usable, key=_reward)
    rejected = min(usable, key=_reward)
    return Pair(chosen=chosen.sample, rejected=rejected.sample)


def _reward(candidate: Candidate) -> float:
    assert candidate.reward is not None, "an ok candidate has a reward"
    return candidate.reward
