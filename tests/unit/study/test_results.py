"""Results of a human study: agreement, win rates and intervals."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optune_core.study.agreement import krippendorff_alpha
from optune_core.study.assignment import Assigned
from optune_core.study.pairing import asked_pairs, pair_up
from optune_core.study.results import current_ratings, summarise
from optune_core.study.sessions import Participant
from tests.unit.study.sources import Row, source

REPORT = """
1 2 3 3 2 1 4 1 2 * * *
1 2 3 3 2 2 4 1 2 5 * 3
* 3 3 3 2 3 4 2 2 5 1 *
1 2 3 3 2 4 4 1 2 5 1 *
"""


def test_alpha_equals_the_published_examples() -> None:
    """Krippendorff, Computing Krippendorff's Alpha-Reliability (2011): sections A (0.095) and C (0.743)."""
    two = zip([0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0], strict=True)
    assert krippendorff_alpha(list(two)) == pytest.approx(0.095, abs=5e-4)
    observers = [line.split() for line in REPORT.strip().splitlines()]
    units = [[value for value in unit if value != "*"] for unit in zip(*observers, strict=True)]
    assert krippendorff_alpha(units) == pytest.approx(0.743, abs=5e-4)


UNITS = st.lists(st.lists(st.sampled_from("wlt"), max_size=4), max_size=8)


@given(UNITS)
def test_alpha_does_not_depend_on_order_or_on_single_ratings(units: list[list[str]]) -> None:
    alpha = krippendorff_alpha(units)
    shuffled = [random.Random(0).sample(unit, len(unit)) for unit in reversed(units)]
    again = krippendorff_alpha([*shuffled, ["w"], []])
    assert (alpha is None) == (again is None)
    if alpha is not None and again is not None:
        assert alpha == pytest.approx(again)
        assert alpha <= 1
        assert (alpha == pytest.approx(1)) == all(len(set(unit)) <= 1 for unit in units)


def rating(position: int, pair: int, swapped: bool, choice: str, seconds: float | None = 1.0) -> Row:
    return {
        "position": position,
        "pair": pair,
        "swapped": swapped,
        "choice": choice,
        "seconds": seconds,
        "rated_at": 0.0,
    }


def test_results_equal_values_by_hand() -> None:
    """Two prompts; prompt a: win, win, tie; prompt b: loss."""
    rows = pair_up([(source("ours", a="1", b="2"), source("full", a="3", b="4"))], 50, seed="s")
    pairs = asked_pairs(rows)
    (a,), (b,) = ([pair.number for pair in pairs if pair.prompt_id == name] for name in "ab")
    people = [Participant(name, name, 0.0, [Assigned(a, False), Assigned(b, False)]) for name in ("x", "y", "z")]
    ratings = {
        "x": [rating(0, a, False, "first"), rating(1, b, True, "first", 9.0)],
        "y": [rating(0, a, True, "first"), rating(0, a, True, "second", None)],
        "z": [rating(0, a, False, "equal")],
    }
    latest = current_ratings(pairs, people, ratings)
    assert [row["outcome"] for row in latest] == ["win", "loss", "win", "tie"]
    assert [row["first"] for row in latest] == ["ours", "full", "full", "ours"]
    comparison = {"policy": "ours", "baseline": "full", "prompts": {"asked": 2}}
    summary = summarise([comparison], latest, {"x": 2, "y": 2, "z": 2})
    (row,) = summary["comparisons"]
    assert (row["ratings"], row["participants"], row["prompts_rated"]) == (4, 3, 2)
    assert row["counts"] == {"win": 2, "loss": 1, "tie": 1}
    # Drawing two of {a, b} with replacement gives a twice, b twice, or both: the extremes are inside 95 %.
    assert row["percent"]["win"] == {"value": 50, "low": 0, "high": pytest.approx(200 / 3)}
    assert row["percent"]["loss"] == {"value": 25, "low": 0, "high": 100}
    assert row["alpha"] == 0, "of one prompt that was rated more than once, agreement is that of chance"
    assert [each["median_seconds"] for each in summary["participants"]] == [5.0, None, 1.0]


def test_a_participant_who_always_presses_one_button_is_marked() -> None:
    base = {"policy": "ours", "baseline": "full", "outcome": "win", "seconds": 1.0}
    rows = [base | {"participant": name, "prompt_id": str(n), "choice": choice}
            for name, choices in (("always", "11111"), ("few", "1111"), ("varied", "11112"))
            for n, choice in enumerate({"1": "first", "2": "second"}[key] for key in choices)]  # fmt: skip
    people = summarise([], rows, {"always": 5, "few": 5, "varied": 5, "absent": 5})["participants"]
    assert [each["always"] for each in people] == ["first", None, None, None]


def test_a_study_without_ratings_has_no_percentages() -> None:
    summary = summarise([{"policy": "ours", "baseline": "full", "prompts": {"asked": 2}}], [], {})
    assert summary["comparisons"][0]["percent"] is None
    assert summary["comparisons"][0]["alpha"] is None
