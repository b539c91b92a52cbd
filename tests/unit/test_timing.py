"""Wall-clock seconds by stage, with several workers at once, and a speed-up that never exceeds its bound."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optune_core.reports.summary import savings
from optune_core.reports.timing import covered, stage_timing
from optune_core.storage import Manifest, Ref

SPANS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 10)).map(lambda span: (span[0], span[0] + span[1])))


@given(SPANS)
def test_seconds_that_several_cover_count_once(spans: list[tuple[int, int]]) -> None:
    assert covered(spans) == len({second for begin, end in spans for second in range(begin, end)})


def manifest(committed_at: float = 0.0, **timing: float) -> Manifest:
    return Manifest(Ref("a", "b", "c"), 1, {}, {}, "d", {}, {}, timing, "e", committed_at)


OTHERS: dict[str, Any] = {
    "selection": manifest(seconds=1),
    "replay": manifest(seconds=2),
    "policy": manifest(seconds=30, reference_seconds=10),
}


def shard(ended_at: float, seconds: float, start: float = 0.0) -> Manifest:
    return manifest(ended_at=ended_at, seconds=seconds, engine_start_seconds=start)


def test_one_engine_takes_the_sum_of_its_shards() -> None:
    shards = [shard(1060, 40, start=20), shard(1090, 30), shard(1100, 10)]
    timing = stage_timing(shards, [shard(2005, 5), shard(2009, 3)], **OTHERS)
    assert timing == {"start engine": 20, "generate": 80, "score": 8, "rank and merge": 3, "train": 40}


def test_engines_side_by_side_take_from_the_first_start_to_the_last_end() -> None:
    first = [shard(1060, 40, start=20), shard(1100, 40)]  # from 1000, generates from 1020
    second = [shard(1070, 35, start=35), shard(1120, 50)]  # from 1000, generates from 1035
    timing = stage_timing([*first, *second], [shard(2010, 10), shard(2008, 8)], **OTHERS)
    assert (timing["start engine"], timing["generate"], timing["score"]) == (20, 100, 10)


def test_a_pause_between_two_starts_does_not_count() -> None:
    before, after = shard(1060, 40, start=20), shard(9060, 30, start=15)
    timing = stage_timing([before, after], [], **OTHERS)
    assert (timing["start engine"], timing["generate"], timing["score"]) == (35, 70, 0)


def test_shards_that_do_not_say_when_they_ended_were_committed_then() -> None:
    old = [manifest(1060, seconds=40, engine_start_seconds=20), manifest(1090, seconds=30, engine_start_seconds=0)]
    timing = stage_timing(old, [], **OTHERS)
    assert (timing["start engine"], timing["generate"]) == (20, 70)


def test_nothing_generated_takes_no_time() -> None:
    timing = stage_timing([], [], **OTHERS)
    assert (timing["start engine"], timing["generate"], timing["score"]) == (0, 0, 0)


def record(generate: float, score: float, rank: float, train: float, start: float, selected: int) -> dict[str, Any]:
    seconds = {"generate": generate, "score": score, "rank and merge": rank, "train": train, "start engine": start}
    return {"timing": seconds, "metrics": {"selection": {"selected": selected, "prompts": 100}}}


def test_speed_up_counts_all_seconds_and_its_bound_all_but_orchestration() -> None:
    saved = savings(record(generate=50, score=5, rank=5, train=50, start=10, selected=50))
    assert saved["speedup"] == pytest.approx(175 / 120)
    assert saved["bound"] == pytest.approx(170 / 115)
    assert saved["seconds_saved"] == 55


seconds = st.floats(0.001, 1e6)


@given(seconds, seconds, st.just(0.0) | seconds, seconds, seconds, st.integers(1, 100))
def test_no_speed_up_passes_its_bound(
    generate: float, score: float, rank: float, train: float, start: float, selected: int
) -> None:
    saved = savings(record(generate, score, rank, train, start, selected))
    assert 1 - 1e-9 <= saved["speedup"] <= saved["bound"] * (1 + 1e-9)
    if rank == 0:
        assert saved["speedup"] == pytest.approx(saved["bound"])
