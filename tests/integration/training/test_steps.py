"""The division of pairs into steps, packs and shards."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from optune_core.training.batches import plan_steps
from optune_core.training.reference import shards_of

lengths = st.lists(st.integers(1, 90), min_size=1, max_size=60)


@settings(max_examples=200)
@given(lengths, st.integers(1, 20), st.integers(1, 150), st.integers(1, 5), st.integers(0, 3))
def test_a_plan_has_every_pair_once_within_the_budget_and_evenly_over_processes(
    lengths: list[int], batch_size: int, budget: int, processes: int, epoch: int
) -> None:
    steps = plan_steps(
        lengths, batch_size=batch_size, micro_batch_tokens=budget, processes=processes, seed=1, epoch=epoch
    )
    counted = [[row for process in step for pack in process if pack.counted for row in pack.rows] for step in steps]
    assert sorted(row for step in counted for row in step) == list(range(len(lengths)))
    assert [len(step) for step in counted[:-1]] == [batch_size] * (len(steps) - 1)
    for step in steps:
        assert len(step) == processes
        assert len({len(process) for process in step}) == 1
        for pack in (pack for process in step for pack in process):
            assert pack.rows
            assert len(pack.rows) == 1 or sum(lengths[row] for row in pack.rows) <= budget


@settings(max_examples=50)
@given(lengths, st.integers(1, 20))
def test_the_step_of_a_pair_does_not_depend_on_budget_or_processes(lengths: list[int], batch_size: int) -> None:
    def members(budget: int, processes: int) -> list[list[int]]:
        steps = plan_steps(
            lengths, batch_size=batch_size, micro_batch_tokens=budget, processes=processes, seed=1, epoch=0
        )
        return [sorted({row for process in step for pack in process for row in pack.rows}) for step in steps]

    assert members(50, 1) == members(1000, 1) == members(50, 4)


def test_processes_get_nearly_equal_numbers_of_tokens() -> None:
    generator = random.Random(0)
    lengths = [generator.randrange(100, 1500) for _ in range(1280)]
    for step in plan_steps(lengths, batch_size=128, micro_batch_tokens=8192, processes=8, seed=0, epoch=0):
        loads = [sum(lengths[row] for pack in process for row in pack.rows) for process in step]
        assert max(loads) < 1.02 * sum(loads) / len(loads)
        assert len(step[0]) == -(-sum(loads) // (8 * 8192))  # in as few rounds as can be


def test_the_order_of_pairs_depends_only_on_the_epoch() -> None:
    def plan(epoch: int) -> Any:
        return plan_steps([1] * 50, batch_size=5, micro_batch_tokens=9, processes=1, seed=0, epoch=epoch)

    assert len({str(plan(epoch)) for epoch in range(3)}) == 3
    assert plan(1) == plan(1)


def test_shards_of_the_reference_pass_are_complete_steps_and_cover_all_rows() -> None:
    for rows, batch_size in ((1, 4), (511, 3), (2000, 128), (2000, 600)):
        steps = plan_steps([7] * rows, batch_size=batch_size, micro_batch_tokens=50, processes=2, seed=0, epoch=0)
        shards = shards_of(steps, batch_size)
        found = [row for shard in shards for pack in shard for row in pack.rows]
        assert sorted(found) == list(range(rows))
        assert all(sum(len(pack.rows) for pack in shard) <= max(512, batch_size) for shard in shards)
        left = shards_of(steps, batch_size, known=range(0, rows, 2))
        assert sorted(row for shard in left for pack in shard for row in pack.rows) == list(range(1, rows, 2))
