"""The win scores of a sweep's cells, by flow `evaluate`."""

from __future__ import annotations

from flows.evaluate import evaluate
from optune_core.errors import OptuneError
from optune_core.evaluation.loading import load_evaluation


def check_evaluation(evaluation: str | None) -> None:
    """Raises ConfigError for the problems of the evaluation's file, before work is spent."""
    if evaluation is not None:
        load_evaluation(evaluation)


def judge_cells(store: str, evaluation: str | None, runs: list[str]) -> dict[str, str]:
    """Judge all policies of these runs; what is recorded already is found, not judged again.

    Returns:
        Why runs could not be judged, by their names.
    """
    failed: dict[str, str] = {}
    if evaluation is None:
        return failed
    for run in runs:
        try:
            evaluate(evaluation, run, every=True, store=store)
        except OptuneError as error:
            failed[run] = f"win score: {error}"
    return failed
