"""Which pairs a participant is shown, in what order, and which response comes first."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Assigned:
    """A pair as one participant sees it."""

    pair: int
    swapped: bool
    """The baseline's response is the first."""


def assign(load: Mapping[int, int], comparison: Mapping[int, str], wanted: int, seed: str) -> list[Assigned]:
    """Choose the pairs that others have been shown least, and shuffle them and their sides.

    Args:
        load: pair → how many participants rate it already.
        comparison: pair → what it belongs to; within each, half of the chosen pairs (give or take one) are swapped.
        wanted: number of pairs, at most.
        seed: decides everything that `load` leaves open: derived from the study and the participant.
    """
    shuffled = random.Random(seed)
    order = sorted(load)
    shuffled.shuffle(order)
    chosen = sorted(order, key=lambda pair: load[pair])[:wanted]  # stable: chance decides among equals
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
