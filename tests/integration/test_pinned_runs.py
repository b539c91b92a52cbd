"""A grid of tiny runs computes what is recorded in `pinned/values`: selections, samples, rewards, pairs, logs, weights.

Texts, ids, counts and reasons are compared exactly, floats within a relative 1e-4. The SHA-256 of weights is compared
on the machine that recorded it alone (see `pinned/values.py`); elsewhere the sums of each tensor are.

Here a part of the grid is compared, in about two minutes on two slow cores. The command
`python -m tests.integration.pinned` compares all of it, counts the values, and says when recording anew is allowed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.pinned import facts, runs, values
from tests.integration.pinned.measure import measured_evaluation, measured_run

pytest.importorskip("alpaca_eval", reason="optune[alpaca] is not installed")
pytestmark = pytest.mark.slow

RUNS = (
    runs.JUDGED,
    "bandit",
    "best-of-n",
    "initial-reference",
    "lora",
    "ahead",
    "engine-logps",
    "trained-reward",
    "hypo",
)
KINDS = ("win-score", "alpaca-eval")


@pytest.fixture(scope="module")
def folder(prefect_server: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the inputs of all runs, and their common store."""
    folder = tmp_path_factory.mktemp("pinned")
    runs.write_inputs(folder)
    with runs.stages_in_this_process():
        yield folder


def compare(name: str, got: Any) -> None:
    comparison = values.Comparison(digests=values.is_recording_machine())
    comparison.compare(name, values.read(name), got)
    assert not comparison.differences, f"\n{comparison}"
    assert comparison.compared > 50


@pytest.mark.parametrize("name", RUNS)
def test_run_computes_what_is_recorded(folder: Path, name: str) -> None:
    compare(name, measured_run(folder, name))


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_computes_what_is_recorded(folder: Path, kind: str) -> None:
    compare(kind, measured_evaluation(folder, kind))


def test_command_compares_all_that_is_recorded() -> None:
    names = {path.stem for path in values.FOLDER.glob("*.json")} - {values.MACHINE.stem}
    assert names == {*runs.grid(Path()), *facts.EVALUATIONS}
    assert {*RUNS, *KINDS} < names


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({"loss": 0.5001, "text": "a", "count": 1, "sha256": "x"}, "run / loss: expected 0.5, got 0.5001"),
        ({"loss": 0.5, "text": "b", "count": 1, "sha256": "x"}, "run / text: expected 'a', got 'b'"),
        ({"loss": 0.5, "text": "a", "count": 1.0, "sha256": "x"}, "run / count: expected 1, got 1.0"),
        ({"loss": 0.5, "text": "a", "count": 1, "sha256": "y"}, "run / sha256: expected 'x', got 'y'"),
        ({"loss": 0.5, "text": "a", "count": 1}, "run / sha256: expected a value, got none"),
    ],
)
def test_a_changed_value_is_named(changed: dict[str, Any], found: str) -> None:
    comparison = values.Comparison(digests=True)
    comparison.compare("run", {"loss": 0.5, "text": "a", "count": 1, "sha256": "x"}, changed)
    assert comparison.differences == [found]


def test_roundings_and_digests_of_another_machine_are_no_difference() -> None:
    comparison = values.Comparison(digests=False)
    comparison.compare("run", {"loss": 0.5, "sha256": "x"}, {"loss": 0.5000001, "sha256": "y"})
    assert (comparison.differences, comparison.compared, comparison.skipped) == ([], 1, 1)
