"""Win score of judgements (Eq. 7), as pure functions."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from optune_core.statistics import central_interval, resampled_counts

Judgement = Literal["win", "tie", "lose"]
"""A judge's verdict on the policy's answer, compared with the baseline's."""

_JUDGEMENTS = get_args(Judgement)


def judgement(policy_score: float, baseline_score: float, tie_margin: float = 0.0) -> Judgement:
    """Return the verdict of two scores on the policy's answer: scores that differ by no more than the margin tie."""
    if abs(policy_score - baseline_score) <= tie_margin:
        return "tie"
    return "win" if policy_score > baseline_score else "lose"


def combine_judgements(first: Judgement, second: Judgement) -> Judgement:
    """Return the outcome of a pair that was judged in both orders (section 4.1 of the paper).

    A response wins with at least one win and no more than one tie, loses in the mirror case, and ties otherwise: a win
    in one order and a loss in the other are a tie.

    Args:
        first, second: the two judgements, both from the policy's point of view.

    Raises:
        ValueError: one of them is no judgement.
    """
    both = (first, second)
    for value in both:
        if value not in _JUDGEMENTS:
            raise ValueError(f"{value!r} is not a judgement: it is one of {', '.join(map(repr, _JUDGEMENTS))}")
    if "win" in both and "lose" not in both:
        return "win"
    return "lose" if "lose" in both and "win" not in both else "tie"


def win_score(wins: int, losses: int, total: int) -> float:
    """Return 50 + 100 · (wins - losses) / total (Eq. 7): 50 is on par; from -50, all lost, to 150, all won.

    Args:
        wins, losses: prompts on which the policy won, and lost.
        total: prompts that were judged, ties included.

    Raises:
        ValueError: the counts are impossible; the message says why.
    """
    if total <= 0:
        raise ValueError(f"total={total}: a win score needs at least one judged prompt")
    if wins < 0 or losses < 0:
        raise ValueError(f"wins={wins}, losses={losses}: counts are not negative")
    if wins + losses > total:
        raise ValueError(f"wins={wins} + losses={losses} are more than total={total}: each prompt has one outcome")
    return 50.0 + 100.0 * (wins - losses) / total


def win_score_interval(wins: int, losses: int, total: int, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the win score over prompts, as (low, high).

    Raises:
        ValueError: as `win_score`.
    """
    win_score(wins, losses, total)
    shares = np.array([wins, losses, total - wins - losses]) / total
    drawn = resampled_counts(total, shares, seed)
    scores = 50.0 + 100.0 * (drawn[:, 0] - drawn[:, 1]) / total
    return central_interval(scores.tolist())
