"""Results of a study, as in Table 4. Pure functions of its pairs and ratings."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np

from optune_core.statistics import resampled_counts
from optune_core.study.agreement import krippendorff_alpha
from optune_core.study.pairing import StudyPair
from optune_core.study.sessions import CHOICES, Participant

Row = dict[str, Any]

OUTCOMES = ("win", "loss", "tie")
"""Outcomes of a rating, for the comparison's policy."""
_ALWAYS = 5
"""Number of ratings from which a participant who always made the same choice is pointed out."""


def current_ratings(
    pairs: Sequence[StudyPair], participants: Sequence[Participant], ratings: Mapping[str, Sequence[Row]]
) -> list[Row]:
    """Return the current choice of each participant for each pair, corrections applied.

    Args:
        pairs: the study's pairs, in the order of their numbers.
        participants: participants in the order in which they joined.
        ratings: choices in the order in which they were made, corrections included, by participant's id.

    Returns:
        One row per participant and pair: the choice, the names of the two sides, and the outcome for the policy.
    """
    rows: list[Row] = []
    for participant in participants:
        made: defaultdict[int, list[Row]] = defaultdict(list)
        for record in ratings[participant.id]:
            made[record["position"]].append(record)
        for position, records in sorted(made.items()):
            last = records[-1]
            pair = pairs[last["pair"]]
            shown = (pair.policy, pair.baseline)
            first, second = shown[::-1] if last["swapped"] else shown
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
    """Compute Table 4, the agreement, and statistics of each participant.

    Args:
        comparisons: `policy`, `baseline` and `prompts` (number by outcome) of each comparison.
        rows: rows of `current_ratings`.
        assigned: number of pairs assigned to each participant, by name.
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
    ratings = [row for row in rows if (row["policy"], row["baseline"]) == sides]
    by_prompt: defaultdict[str, list[str]] = defaultdict(list)
    for row in ratings:
        by_prompt[row["prompt_id"]].append(row["outcome"])
    counts = Counter(row["outcome"] for row in ratings)
    return {
        **comparison,
        "ratings": len(ratings),
        "participants": len({row["participant"] for row in ratings}),
        "prompts_rated": len(by_prompt),
        "counts": {outcome: counts[outcome] for outcome in OUTCOMES},
        "percent": _percentages(list(by_prompt.values())),
        "alpha": krippendorff_alpha(by_prompt.values()),
    }


def _percentages(prompts: Sequence[Sequence[str]]) -> dict[str, Row] | None:
    """Compute the share of each outcome among all ratings, in per cent, with a 95 % bootstrap interval over prompts.

    Prompts are drawn with all their ratings, since ratings of one prompt are not independent of each other. A single
    prompt has no interval.
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
    ratings = [row for row in rows if row["participant"] == name]
    counts = Counter(row["choice"] for row in ratings)
    seconds = [row["seconds"] for row in ratings if row["seconds"] is not None]
    return {
        "name": name,
        "assigned": assigned,
        "ratings": len(ratings),
        "choices": {choice: counts[choice] for choice in CHOICES},
        "median_seconds": median(seconds) if seconds else None,
        "always": ratings[0]["choice"] if len(ratings) >= _ALWAYS and len(counts) == 1 else None,
    }
