"""Length-controlled win rates where the answer is known."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optune_core.errors import JudgeError
from tests.integration.alpaca.calibration import logistic, write_calibration

pytest.importorskip("alpaca_eval", reason="optune[alpaca] is not installed")

pytestmark = pytest.mark.slow


def annotations(preference: Any, reference: Any, policy: Any) -> list[dict[str, Any]]:
    """Return rows of ANNOTATIONS with outputs of these lengths."""
    return [
        {
            "index": index,
            "instruction": f"Do {index}.",
            "reference_output": "r" * int(reference[index]),
            "policy_output": "p" * int(policy[index]),
            "preference": None if preference[index] is None else 1 + float(preference[index]),
        }
        for index in range(len(reference))
    ]


N = 300
LENGTHS = np.random.default_rng(0).integers(500, 1500, N)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(1)


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_calibration(tmp_path_factory.mktemp("calibration") / "df_gamed.csv", N)


def controlled(rows: list[dict[str, Any]], calibration: Path) -> dict[str, Any]:
    from optune_core.evaluation.alpaca_eval.length_control import length_controlled

    return length_controlled(rows, calibration)


def test_length_control_keeps_a_preference_that_ignores_length(calibration: Path, rng: np.random.Generator) -> None:
    policy = rng.integers(500, 1500, N)
    preference = logistic(0.8 + rng.normal(0, 0.3, N))
    found = controlled(annotations(preference, LENGTHS, policy), calibration)
    assert found["win_rate"] == pytest.approx(100 * preference.mean())
    assert found["standard_error"] == pytest.approx(100 * preference.std(ddof=1) / math.sqrt(N))
    assert abs(found["lc_win_rate"] - found["win_rate"]) < 2.5
    assert found["total"] == N and found["wins"] == (preference > 0.5).sum() and found["draws"] == 0
    assert found["mean_length"] == pytest.approx(policy.mean())
    assert found["mean_reference_length"] == pytest.approx(LENGTHS.mean())


def test_length_control_removes_an_advantage_of_length_alone(calibration: Path, rng: np.random.Generator) -> None:
    policy = LENGTHS + rng.integers(100, 900, N)
    delta = (LENGTHS - policy) / (LENGTHS - policy).std(ddof=1)
    found = controlled(annotations(logistic(-np.tanh(delta)), LENGTHS, policy), calibration)
    assert found["win_rate"] > 65
    assert abs(found["lc_win_rate"] - 50) < 5


def test_exchanged_sides_give_the_complementary_win_rate(calibration: Path, rng: np.random.Generator) -> None:
    policy = LENGTHS + rng.integers(-400, 800, N)
    delta = (LENGTHS - policy) / (LENGTHS - policy).std(ddof=1)
    preference = logistic(0.5 - 0.7 * np.tanh(delta))
    ours = controlled(annotations(preference, LENGTHS, policy), calibration)
    theirs = controlled(annotations(1 - preference, policy, LENGTHS), calibration)
    assert ours["win_rate"] + theirs["win_rate"] == pytest.approx(100)
    assert abs(ours["lc_win_rate"] + theirs["lc_win_rate"] - 100) < 3
    assert ours["lc_win_rate"] > 55


def test_malformed_annotations_and_their_order_do_not_change_the_win_rates(
    calibration: Path, rng: np.random.Generator
) -> None:
    preference: list[Any] = list(logistic(0.8 + rng.normal(0, 1.0, N)))
    rows = annotations(preference, LENGTHS, LENGTHS + rng.integers(-300, 300, N))
    complete = controlled(rows, calibration)
    assert controlled(rows[::-1], calibration) == complete
    for row in rows[:40]:
        row["preference"] = None
    found = controlled(rows, calibration)
    assert found["total"] == N - 40
    assert found["win_rate"] == pytest.approx(100 * np.mean(preference[40:]))
    assert 0 < abs(found["lc_win_rate"] - complete["lc_win_rate"]) < 10


def test_equal_length_differences_are_refused(calibration: Path) -> None:
    with pytest.raises(JudgeError, match="one and the same difference in length"):
        controlled(annotations([0.5, 0.7], [10, 20], [15, 25]), calibration)
