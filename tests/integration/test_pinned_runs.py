"""A grid of tiny runs computes what is recorded in `pinned/values`: selections, samples, rewards, pairs, logs, weights.

Texts, ids, counts and reasons are compared exactly, floats within a relative 1e-4, and the SHA-256 of weights on the
machine that recorded them alone; elsewhere the sums of each tensor stand for them. `python -m tests.integration.pinned`
compares the same from the command line, counts the values, and says when recording anew is allowed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.pinned import facts, runs, values
from tests.integration.pinned.measure import measured_evaluation, measured_run

pytest.importorskip("alpaca_eval", reason="optune[alpaca] is not installed")
pytest.importorskip("lm_eval", reason="optune[harness] is not installed")
pytestmark = pytest.mark.slow

RUNS = tuple(runs.grid(Path()))


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


@pytest.mark.parametrize("kind", facts.EVALUATIONS)
def test_evaluation_computes_what_is_recorded(folder: Path, kind: str) -> None:
    runs.perform(folder, folder / "store", runs.JUDGED)
    compare(kind, measured_evaluation(folder, kind))
