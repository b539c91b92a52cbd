"""Plan of a training: which pairs share an optimizer step, and which of them share a forward pass.

A step holds `batch_size` pairs, drawn without replacement in an order that (seed, epoch) decides, as in a plain
trainer. Within a step pairs are divided into packs without padding and with about equal numbers of tokens, so that
processes that train together finish together. The division into packs changes only roundings.

The reference pass computes the packs of the first epoch. So equal policy and reference give bitwise equal
log-probabilities, and the first loss of an iteration is mean(R)·ln 2 exactly.
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
    """Row of each pair in the table of pairs."""
    counted: bool = True
    """True: the pairs count in the loss. False: another process of this step has them, and they are computed here
    only because all processes have to take part in every exchange of gradients."""


Step = tuple[tuple[Pack, ...], ...]
"""Packs of an optimizer step, by process; all processes have the same number of packs."""


def plan_steps(
    tokens: Sequence[int], *, batch_size: int, micro_batch_tokens: int, processes: int, seed: int, epoch: int
) -> list[Step]:
    """Plan all optimizer steps of an epoch. Every pair is counted in exactly one step.

    Args:
        tokens: number of tokens that each pair costs in a forward pass.
        batch_size: pairs per step; the last step may have fewer.
        micro_batch_tokens: tokens that a pack may hold. A longer pair has a pack to itself.
        processes: number of processes that share a step.
        seed, epoch: decide the order of the pairs.
    """
    order = list(range(len(tokens)))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return [
        _packed(order[first : first + batch_size], tokens, micro_batch_tokens, processes)
        for first in range(0, len(order), batch_size)
    ]


def _packed(rows: Sequence[int], tokens: Sequence[int], micro_batch_tokens: int, processes: int) -> Step:
    """Pack the pairs of one step into as few rounds as the budget allows, with one pack per process and round."""
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
    """Divide rows into `count` groups with about equal numbers of tokens, the largest group first.

    Each row, longest first, goes to the group with the fewest tokens so far.
    """
    groups: list[list[int]] = [[] for _ in range(count)]
    loads = [(0, number) for number in range(count)]
    for row in sorted(rows, key=lambda row: (-tokens[row], row)):
        load, number = heapq.heappop(loads)
        groups[number].append(row)
        heapq.heappush(loads, (load + tokens[row], number))
    return [groups[number] for _, number in sorted(loads, key=lambda each: (-each[0], each[1]))]
