"""What a study found, as Table 4. Pure functions of its pairs and ratings."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np

from optune_core.statistics import resampled_counts
from optune_core.study.agreement import krippendorff_alpha
from optune_core.study.pairing import Pair
from optune_core.study.sessions import CHOICES, Participant

Row = dict[str, Any]

OUTCOMES = ("win", "loss", "tie")
"""Of the comparison's policy."""
_ALWAYS = 5
"""Ratings from which on somebody who only ever pressed one button is pointed out."""


def standing_ratings(
    pairs: Sequence[Pair], participants: Sequence[Participant], ratings: Mapping[str, Sequence[Row]]
) -> list[Row]:
    """One row a participant and pair: the choice that stands, with what it was about.

    Args:
        pairs: of the study, by number.
        participants: in the order of joining.
        ratings: participant's id → choices in the order of making, corrections included.
    """
    rows: list[Row] = []
    for participant in participants:
        made: defaultdict[int, list[Row]] = defaultdict(list)
        for record in ratings[participant.id]:
            made[record["position"]].append(record)
        for position, records in sorted(made.items()):
            last = records[-1]
            pair = pairs[last["pair"]]
            first, second = (
                (pair.baseline, pair.policy) if last["swapped"] else (pair.policy, pair.baseline)
            )  # as they were shown
            rows.append(
                {
                    "participant": participant.name,
                    "position": position,
                    "policy": pair.policy,
                    "baseline": pair.baseline,
                    "prompt_id": pair.prompt_id,
                    "first": first,
                    "second": second,
                    "choice": last["choice"],
                    "outcome": _outcome(last["choice"], last["swapped"]),
                    "seconds": last["seconds"],
                    "rated_at": last["rated_at"],
                    "submissions": len(records),
                }
            )
    return rows


def summarise(comparisons: Sequence[Row], rows: Sequence[Row], assigned: Mapping[str, int]) -> Row:
    """Table 4, agreement, and how each participant answered.

    Args:
        comparisons: `policy`, `baseline` and `prompts` (number by outcome) of each.
        rows: from `standing_ratings`.
        assigned: participant's name → number of pairs that they were given.
    """
    return {
        "ratings": len(rows),
        "participants": [_participant(name, number, rows) for name, number in assigned.items()],
        "comparisons": [_comparison(comparison, rows) for comparison in comparisons],
    }


def _outcome(choice: str, swapped: bool) -> str:
    if choice == "equal":
        return "tie"
    return "win" if (choice == "first") != swapped else "loss"


def _comparison(comparison: Row, rows: Sequence[Row]) -> Row:
    sides = (comparison["policy"], comparison["baseline"])
    here = [row for row in rows if (row["policy"], row["baseline"]) == sides]
    by_prompt: defaultdict[str, list[str]] = defaultdict(list)
    for row in here:
        by_prompt[row["prompt_id"]].append(row["outcome"])
    counts = Counter(row["outcome"] for row in here)
    return {
        **comparison,
        "ratings": len(here),
        "participants": len({row["participant"] for row in here}),
        "prompts_rated": len(by_prompt),
        "counts": {outcome: counts[outcome] for outcome in OUTCOMES},
        "percent": _percentages(list(by_prompt.values())),
        "alpha": krippendorff_alpha(by_prompt.values()),
    }


def _percentages(prompts: Sequence[Sequence[str]]) -> dict[str, Row] | None:
    """Share of each outcome among all ratings, in per cent, with a 95 % bootstrap interval over prompts.

    Prompts are drawn with all their ratings: ratings of one prompt are not independent of each other. No interval
    for a single prompt.
    """
    if not prompts:
        return None
    counts = np.array([[prompt.count(outcome) for outcome in OUTCOMES] for prompt in prompts], dtype=np.float64)
    shares = resampled_counts(len(counts), np.full(len(counts), 1 / len(counts))) @ counts
    shares *= 100 / shares.sum(axis=1, keepdims=True)
    # Interpolated, where `central_interval` takes a resampled value: the intervals of earlier studies must stay equal.
    low, high = np.quantile(shares, [0.025, 0.975], axis=0)
    value = 100 * counts.sum(axis=0) / counts.sum()
    several = len(prompts) > 1
    return {
        outcome: {
            "value": float(value[at]),
            "low": float(low[at]) if several else None,
            "high": float(high[at]) if several else None,
        }
        for at, outcome in enumerate(OUTCOMES)
    }


def _participant(name: str, assigned: int, rows: Sequence[Row]) -> Row:
    theirs = [row for row in rows if row["participant"] == name]
    counts = Counter(row["choice"] for row in theirs)
    seconds = [row["seconds"] for row in theirs if row["seconds"] is not None]
    return {
        "name": name,
        "assigned": assigned,
        "ratings": len(theirs),
        "choices": {choice: counts[choice] for choice in CHOICES},
        "median_seconds": median(seconds) if seconds else None,
        "always": theirs[0]["choice"] if len(theirs) >= _ALWAYS and len(counts) == 1 else None,
    }
