"""The numbers of a comparison, from its table alone."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from optune_core.errors import JudgeError
from optune_core.evaluation.win_score.judgements import win_score, win_score_interval


def summarise_comparisons(table: pa.Table, prices: tuple[float, float] | None) -> dict[str, Any]:
    """Return win score, interval, counts, and the requests and tokens of the judging.

    Args:
        table: schema COMPARISONS.
        prices: price of a million prompt tokens and of a million completion tokens; None where unknown.

    Returns:
        `win_score` (Eq. 7) with its 95 % bootstrap interval `low`, `high`; `wins`, `ties`, `losses` and their sum
        `total`; `malformed`, prompts that are in none of these; `requests`, `prompt_tokens`, `completion_tokens`;
        `cost`, None where no price is known.

    Raises:
        JudgeError: no judgement can be read.
    """
    outcomes = table["outcome"].to_pylist()
    wins, ties, losses, malformed = (outcomes.count(outcome) for outcome in ("win", "tie", "lose", "malformed"))
    total = wins + ties + losses
    if total == 0:
        raise JudgeError(
            f"all {malformed} judgements are malformed, such as: {table['reason'][0].as_py()}. Give a judge that keeps "
            "to the rating prompt, or raise judge.attempts or judge.max_tokens"
        )
    low, high = win_score_interval(wins, losses, total)
    usage = {name: pc.sum(table[name]).as_py() for name in ("requests", "prompt_tokens", "completion_tokens")}
    cost = None
    if prices is not None:
        cost = (usage["prompt_tokens"] * prices[0] + usage["completion_tokens"] * prices[1]) / 1e6
    return {
        "win_score": win_score(wins, losses, total),
        "low": low,
        "high": high,
        "wins": wins,
        "ties": ties,
        "losses": losses,
        "total": total,
        "malformed": malformed,
        **usage,
        "cost": cost,
    }
