"""Preference pairs to train a reward model on, split by prompt, with the baseline that every reward model must beat."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from optune_core.errors import DataError


def label_pairs(scores: Sequence[float], most: int) -> list[tuple[int, int]]:
    """(chosen, rejected) index pairs of one prompt's responses, widest gap first.

    Args:
        scores: one a response, finite.
        most: pairs at the most.

    Returns:
        Pairs with unequal scores; ties in the gap are settled by index.
    """
    pairs = [(i, j) for i in range(len(scores)) for j in range(len(scores)) if scores[i] > scores[j]]
    return sorted(pairs, key=lambda pair: (scores[pair[1]] - scores[pair[0]], pair))[:most]


def held_out_prompts(prompt_ids: Sequence[str], fraction: float, seed: int) -> set[str]:
    """The prompts kept for the reported accuracy. All pairs of a prompt fall on one side.

    Args:
        prompt_ids: may repeat.
        fraction: share of distinct prompts, in (0, 1).
        seed: the run's seed.

    Raises:
        DataError: one side would be empty.
    """
    distinct = sorted(
        set(prompt_ids), key=lambda prompt_id: hashlib.sha256(f"{seed}/reward/{prompt_id}".encode()).digest()
    )
    size = round(fraction * len(distinct))
    if not 0 < size < len(distinct):
        raise DataError(
            f"held_out_fraction={fraction} of {len(distinct)} prompts leaves one side empty: "
            "give more preference data or another fraction"
        )
    return set(distinct[:size])


def accuracy(chosen: Sequence[float], rejected: Sequence[float]) -> float:
    """Share of pairs whose chosen response scores higher; a tie counts half.

    Args:
        chosen, rejected: scores, one a pair; at least one pair.
    """
    wins = sum(1.0 if c > r else 0.5 if c == r else 0.0 for c, r in zip(chosen, rejected, strict=True))
    return wins / len(chosen)
