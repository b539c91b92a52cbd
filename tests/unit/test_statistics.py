"""Bootstrap intervals: the numbers that reports, win scores and studies have shown since the first version."""

from __future__ import annotations

import random

import pytest

from optune_core.evaluation.win_score.judgements import win_score_interval
from optune_core.statistics import paired_difference
from optune_core.study.results import OUTCOMES, summarise


def test_interval_of_a_paired_difference_is_pinned() -> None:
    generator = random.Random(1)
    before = {f"p{number}": generator.gauss(0, 1) for number in range(40)}
    after = {prompt_id: reward + generator.gauss(0.2, 0.7) for prompt_id, reward in before.items()}
    assert paired_difference(before, after) == {
        "before": 0.11402104429139784,
        "after": 0.27675401065090666,
        "difference": 0.1627329663595088,
        "low": -0.05475764965140474,
        "high": 0.38265896127196564,
        "prompts": 40,
    }


@pytest.mark.parametrize(
    ("counts", "seed", "interval"),
    [
        ((31, 12, 60), 0, (61.666666666666664, 101.66666666666666)),
        ((31, 12, 60), 6, (61.666666666666664, 100.0)),
        ((5, 9, 17), 0, (-14.705882352941174, 67.64705882352942)),
    ],
)
def test_interval_of_a_win_score_is_pinned(
    counts: tuple[int, int, int], seed: int, interval: tuple[float, float]
) -> None:
    assert win_score_interval(*counts, seed=seed) == interval


def test_interval_of_a_study_is_pinned() -> None:
    """30 prompts with one to four ratings each."""
    generator = random.Random(2)
    rows = [
        {"policy": "ours", "baseline": "full", "prompt_id": str(prompt), "participant": str(person), "outcome": outcome}
        for prompt in range(30)
        for person, outcome in enumerate(generator.choices(OUTCOMES, [4, 3, 2], k=generator.randint(1, 4)))
    ]
    (row,) = summarise([{"policy": "ours", "baseline": "full", "prompts": {}}], rows, {})["comparisons"]
    assert row["percent"] == {
        "win": {"value": 35.2112676056338, "low": 24.0, "high": 47.6208791208791},
        "loss": {"value": 38.028169014084504, "low": 26.865671641791046, "high": 48.71794871794872},
        "tie": {"value": 26.760563380281692, "low": 17.28042328042328, "high": 36.66911764705881},
    }
