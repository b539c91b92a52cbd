"""Assignment of pairs to participants: which ones, in which order, and which response is shown first."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Assigned:
    """A pair as one participant sees it."""

    pair: int
    """Number of the pair in the study."""
    swapped: bool
    """True: the baseline's response is shown first."""


def assign(load: Mapping[int, int], comparison: Mapping[int, str], wanted: int, seed: str) -> list[Assigned]:
    """Choose the pairs with the fewest participants, and shuffle them and their sides.

    Args:
        load: number of participants who rate each pair, by number of the pair.
        comparison: name of the comparison that each pair belongs to. Of the chosen pairs of a comparison half are
            swapped; of an odd number, one more or one fewer.
        wanted: largest number of pairs.
        seed: decides everything that `load` does not; derived from the study and the participant.
    """
    shuffled = random.Random(seed)
    order = sorted(load)
    shuffled.shuffle(order)
    chosen = sorted(order, key=lambda pair: load[pair])[:wanted]  # the sort is stable: equal loads keep the shuffle
    shuffled.shuffle(chosen)
    together: defaultdict[str, list[int]] = defaultdict(list)
    for pair in chosen:
        together[comparison[pair]].append(pair)
    swapped: dict[int, bool] = {}
    for pairs in together.values():
        extra = shuffled.randrange(2)
        sides = [(number + extra) % 2 == 0 for number in range(len(pairs))]
        shuffled.shuffle(sides)
        swapped |= dict(zip(pairs, sides, strict=True))
    return [Assigned(pair, swapped[pair]) for pair in chosen]
