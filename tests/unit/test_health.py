"""Limits on fresh data: each one that is exceeded stops the run and shows its numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from optune_core.errors import UnhealthyData
from optune_core.health import Freshness, Health, check_health

SOUND = Freshness(
    prompts=10,
    pairs=8,
    reasons={"tied": 2},
    responses=20,
    distinct=18,
    truncated=5,
    mean_tokens=30.0,
    first_mean_tokens=40.0,
)
LIMITS = Health(max_dropped=0.5, min_distinct=0.25, min_length=0.5, max_truncated=0.5)


def test_sound_data_passes() -> None:
    check_health(SOUND, LIMITS, 1)


def test_data_exactly_at_the_limits_passes() -> None:
    check_health(replace(SOUND, pairs=5, distinct=5, truncated=10, mean_tokens=20.0), LIMITS, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pairs": 4, "reasons": {"tied": 4, "identical": 2}}, r"6 of 10 prompts .*identical: 2, tied: 4.*max_dropped"),
        ({"distinct": 4}, r"4 of 20 responses are distinct.*min_distinct = 0\.25"),
        ({"truncated": 11}, r"11 of 20 responses are cut.*max_truncated = 0\.5"),
        ({"mean_tokens": 19.9}, r"19\.9 tokens on average and had 40\.0 in iteration 0.*min_length = 0\.5"),
    ],
)
def test_each_exceeded_limit_stops_the_run_and_shows_its_numbers(change: dict[str, object], message: str) -> None:
    with pytest.raises(UnhealthyData, match=message):
        check_health(replace(SOUND, **change), LIMITS, 3)  # type: ignore[arg-type]


def test_all_exceeded_limits_are_reported_together() -> None:
    with pytest.raises(UnhealthyData, match=r"iteration 3(.|\n)*max_dropped(.|\n)*min_distinct"):
        check_health(replace(SOUND, pairs=0, distinct=1), LIMITS, 3)


def test_an_iteration_without_responses_is_healthy() -> None:
    check_health(replace(SOUND, prompts=0, responses=0, pairs=0, distinct=0, mean_tokens=0.0), LIMITS, 1)


def test_limits_apply_to_online_samples_too() -> None:
    online = replace(SOUND, prompts=0, pairs=0, reasons={})
    check_health(online, LIMITS, 1)
    with pytest.raises(UnhealthyData, match="min_distinct"):
        check_health(replace(online, distinct=1), LIMITS, 1)
