"""Which pairs share an optimizer step, and which of them share a forward pass: the plan of a training.

A step holds `batch_size` pairs, drawn without replacement in an order that (seed, epoch) decides, as a plain trainer
would draw them. Inside a step pairs are laid out in packs: no padding, about as many tokens in each, so that processes
which train together finish together. How a step is packed changes nothing but roundings.

The reference pass computes the packs of the first epoch. Where policy and reference agree they then agree to the last
bit, and the first loss of an iteration is mean(R)·ln 2 exactly.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Pack:
    """Pairs that share a forward pass."""

    rows: tuple[int, ...]
    counted: bool = True
    """False: another process of this step has these pairs; computed here only because all processes have to take
    part in every exchange of gradients."""


Step = tuple[tuple[Pack, ...], ...]
"""The packs of every process; every process has as many."""


def plan_steps(
    tokens: Sequence[int], *, batch_size: int, micro_batch_tokens: int, processes: int, seed: int, epoch: int
) -> list[Step]:
    """All optimizer steps of an epoch; every pair is counted in exactly one of them.

    Args:
        tokens: of each pair, as they are computed.
        batch_size: pairs a step; the last step may have fewer.
        micro_batch_tokens: tokens a pack may hold. A pair that is longer has a pack to itself.
        processes: that share a step.
        seed, epoch: decide the order of the pairs.
    """
    order = list(range(len(tokens)))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return [
        _packed(order[first : first + batch_size], tokens, micro_batch_tokens, processes)
        for first in range(0, len(order), batch_size)
    ]


def _packed(rows: Sequence[int], tokens: Sequence[int], micro_batch_tokens: int, processes: int) -> Step:
    """Pairs of one step in as few rounds of packs as the budget allows, one pack a process and round."""
    total = sum(tokens[row] for row in rows)
    rounds = max(1, -(-total // (micro_batch_tokens * processes)))
    most = -(-len(rows) // processes)
    while True:
        packs = _balanced(rows, tokens, min(rounds * processes, len(rows)))
        if rounds >= most or all(len(p) == 1 or sum(tokens[row] for row in p) <= micro_batch_tokens for p in packs):
            break
        rounds += 1
    counted = [Pack(tuple(pack)) for pack in packs]
    shortest = min(rows, key=lambda row: tokens[row])
    counted += [Pack((shortest,), counted=False)] * (-len(counted) % processes)
    return tuple(tuple(counted[process::processes]) for process in range(processes))


def _balanced(rows: Sequence[int], tokens: Sequence[int], count: int) -> list[list[int]]:
    """Rows in `count` groups of about as many tokens, the largest group first: each row, longest first, to the group
    with the fewest tokens so far."""
    groups: list[list[int]] = [[] for _ in range(count)]
    loads = [(0, number) for number in range(count)]
    for row in sorted(rows, key=lambda row: (-tokens[row], row)):
        load, number = heapq.heappop(loads)
        groups[number].append(row)
        heapq.heappush(loads, (load + tokens[row], number))
    return [groups[number] for _, number in sorted(loads, key=lambda each: (-each[0], each[1]))]
