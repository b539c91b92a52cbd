"""A grid of tiny runs computes what is recorded in `pinned/values`: selections, samples, rewards, pairs, logs, weights.

Texts, ids, counts and reasons are compared exactly on every machine. Floats are compared within a tolerance that is
tighter on the machine that recorded them, and the SHA-256 of weights on that machine alone: see `pinned/values.py`.

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
    same = values.is_recording_machine()
    if not same and name in runs.NOT_PORTABLE:
        pytest.skip("computes in bfloat16, which this machine rounds differently from the recording one")
    comparison = values.Comparison(same)
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
        ({"loss": 0.50001, "text": "a", "count": 1, "sha256": "x"}, "run / loss: expected 0.5, got 0.50001"),
        ({"loss": 0.5, "text": "b", "count": 1, "sha256": "x"}, "run / text: expected 'a', got 'b'"),
        ({"loss": 0.5, "text": "a", "count": 1.0, "sha256": "x"}, "run / count: expected 1, got 1.0"),
        ({"loss": 0.5, "text": "a", "count": 1, "sha256": "y"}, "run / sha256: expected 'x', got 'y'"),
        ({"loss": 0.5, "text": "a", "count": 1}, "run / sha256: expected a value, got none"),
    ],
)
def test_a_changed_value_is_named(changed: dict[str, Any], found: str) -> None:
    comparison = values.Comparison(same_machine=True)
    comparison.compare("run", {"loss": 0.5, "text": "a", "count": 1, "sha256": "x"}, changed)
    assert comparison.differences == [found]


def test_roundings_and_digests_of_another_machine_are_no_difference() -> None:
    recorded = {"loss": 0.5, "sums": [1.0], "sha256": "x", "rewards/accuracies": 1.0}
    elsewhere = {"loss": 0.50001, "sums": [1.01], "sha256": "y", "rewards/accuracies": 0.5}
    comparison = values.Comparison(same_machine=False)
    comparison.compare("run", recorded, elsewhere)
    assert (comparison.differences, comparison.compared, comparison.skipped) == ([], 2, 2)
    comparison.compare("run", recorded, elsewhere | {"loss": 0.501, "sums": [1.1]})
    assert len(comparison.differences) == 2
