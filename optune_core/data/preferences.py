"""Preference pairs to train a reward model on: labelled by scores, split by prompt, and the accuracy on them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from optune_core.errors import DataError


def label_pairs(scores: Sequence[float], most: int) -> list[tuple[int, int]]:
    """Pair one prompt's responses by their scores, widest gap first.

    Args:
        scores: one finite score per response.
        most: largest number of pairs to return.

    Returns:
        Indices (chosen, rejected) of responses with unequal scores. Equal gaps are ordered by index.
    """
    pairs = [(i, j) for i in range(len(scores)) for j in range(len(scores)) if scores[i] > scores[j]]
    return sorted(pairs, key=lambda pair: (scores[pair[1]] - scores[pair[0]], pair))[:most]


def held_out_prompts(prompt_ids: Sequence[str], fraction: float, seed: int) -> set[str]:
    """Choose the prompts held out for the reported accuracy. All pairs of a prompt are on the same side.

    Args:
        prompt_ids: ids of the pairs' prompts; an id may repeat.
        fraction: share of distinct prompts to hold out, in (0, 1).
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
            f"held_out_fraction={fraction} of {len(distinct)} prompts leaves either training or held-out data empty: "
            "give more preference data or another fraction"
        )
    return set(distinct[:size])


def accuracy(chosen: Sequence[float], rejected: Sequence[float]) -> float:
    """Return the share of pairs whose chosen response scores higher, in [0, 1]. A tie counts half.

    Args:
        chosen, rejected: scores, one per pair; at least one pair.
    """
    wins = sum(1.0 if c > r else 0.5 if c == r else 0.0 for c, r in zip(chosen, rejected, strict=True))
    return wins / len(chosen)
