"""Each warning is given with its number beyond its limit, and not at the limit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from optune_core.reports.facts import RunFacts
from optune_core.reports.warnings import Caution, find_warnings
from tests.unit.facts import ANSWERS, change, held_out, iteration, sound_run


def only_warning(run: RunFacts) -> Caution:
    (warning,) = find_warnings(run)
    return warning


def with_second(**changes: Any) -> RunFacts:
    return sound_run(iterations=[iteration(0), iteration(1, **changes)])


def with_reasons(**reasons: int) -> RunFacts:
    return with_second(metrics=iteration(1).metrics | {"reasons": reasons})


def with_weights(weights: list[float]) -> RunFacts:
    return with_second(pairs=replace(iteration(1).pairs, weights=np.array(weights)))


def with_first_loss(loss: float, **changes: Any) -> RunFacts:
    row = iteration(1).summary
    return with_second(summary=row | {"first_loss": loss * row["first_loss_expected"]}, **changes)


def test_a_sound_run_has_no_warnings() -> None:
    assert find_warnings(sound_run()) == []


def test_a_run_that_has_just_begun_has_no_warnings() -> None:
    assert find_warnings(sound_run(iterations=[], held_out=[])) == []


RISES, FALLS, FLAT = change(0.3, 0.1, 0.5), change(-0.2, -0.3, -0.1), change(0.1, -0.1, 0.3)
BAD_MODEL = {"accuracy/held_out": 0.6, "accuracy/length_only": 0.6, "held_out_pairs": 30, "pairs": 100}


@pytest.mark.parametrize(
    ("run", "title", "numbers"),
    [
        (sound_run(held_out=held_out(RISES, FALLS)), "Proxy up, gold down", "gold -0.200 [-0.300, -0.100]"),
        (sound_run(held_out=held_out(RISES, FLAT)), "Proxy up, gold flat", "+0.300 [+0.100, +0.500]"),
        (
            sound_run(held_out=held_out(RISES, last=replace(ANSWERS, distinct=15))),
            "Fewer distinct responses",
            "90 % of π₀'s held-out responses are distinct, 75 % of the last policy's",
        ),
        (
            sound_run(held_out=held_out(FLAT, last=replace(ANSWERS, tokens=750))),
            "Length drift",
            "held-out responses went from 30.0 to 37.5 tokens (+25 %)",
        ),
        (
            with_second(correlations={"chosen": 0.0, "rejected": 0.0, "both": -0.51}),
            "Reward follows length",
            "-0.51 in iteration 1, and beyond the limit in 1 of 2",
        ),
        (sound_run(reward_model=BAD_MODEL), "Reward model no better than length", "60 % on 30 held-out pairs"),
        (with_reasons(identical=1), "Dropped prompts in iteration 1", "1 of 5 regenerated prompts have no"),
        (with_second(fresh=replace(ANSWERS, truncated=3)), "Truncated responses", "15 % of the fresh responses"),
        (with_weights([0.001] * 9 + [0.9]), "Few effective pairs", "worth 10 % of its pairs"),
        (with_first_loss(1.01), "First loss not exact in iteration 1", "0.42005 at the first step"),
    ],
)
def test_each_exceeded_limit_gives_a_warning_with_its_number(run: RunFacts, title: str, numbers: str) -> None:
    warning = only_warning(run)
    assert warning.title == title
    assert numbers in warning.found
    assert warning.rule


def test_ties_give_a_warning_and_count_among_the_dropped_prompts() -> None:
    dropped, tied = find_warnings(with_reasons(tied=1))
    assert (dropped.title, tied.title) == ("Dropped prompts in iteration 1", "Ties in iteration 1")
    assert "1 tied" in dropped.found
    assert "in 1 of 5 regenerated prompts" in tied.found


@pytest.mark.parametrize(
    "run",
    [
        sound_run(held_out=held_out(FLAT, FALLS)),  # the proxy does not rise either: training failed, nothing is hacked
        sound_run(held_out=held_out(RISES)),  # no gold
        sound_run(held_out=held_out(FLAT, last=replace(ANSWERS, distinct=5))),
        sound_run(held_out=held_out(RISES, last=replace(ANSWERS, distinct=16))),
        sound_run(held_out=held_out(RISES, last=replace(ANSWERS, distinct=None))),  # an old store
        sound_run(held_out=held_out(RISES, last=replace(ANSWERS, tokens=720))),
        with_second(correlations={"chosen": 0.9, "rejected": 0.9, "both": 0.5}),
        sound_run(reward_model=BAD_MODEL | {"accuracy/held_out": 0.61}),
        with_second(selected=10, metrics=iteration(1).metrics | {"reasons": {"identical": 1}}),
        with_second(selected=0, fresh=None),  # offline
        with_second(fresh=replace(ANSWERS, truncated=2)),
        with_weights([0.5] * 5 + [1.0] * 5),
        with_first_loss(1.0005),
        with_first_loss(1.5, starts_at_reference=False),  # the reference is π_0
    ],
)
def test_values_exactly_at_the_limits_give_no_warning(run: RunFacts) -> None:
    assert find_warnings(run) == []


def test_length_drift_falls_back_to_fresh_responses_without_held_out_prompts() -> None:
    shorter = sound_run(
        held_out=[], iterations=[iteration(0), iteration(1, fresh=replace(ANSWERS, tokens=300, truncated=0))]
    )
    assert "fresh responses went from 30.0 to 15.0 tokens (-50 %)" in only_warning(shorter).found


def test_serious_warnings_come_first() -> None:
    run = replace(with_reasons(identical=2), held_out=held_out(RISES, FALLS))
    assert [warning.level for warning in find_warnings(run)] == ["serious", "notable"]
