"""Flow `evaluate`: an evaluation of a run's policies, of any kind."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.request import store_url
from optune_core.evaluation.loading import load_evaluation
from tasks.evaluate import commit_evaluation, open_evaluation, outcomes
from tasks.prepare import check_store
from tasks.support.logs import quiet_known_errors


@flow(name="evaluate", flow_run_name="evaluate {run}")
def evaluate(
    evaluation: str,
    run: str,
    iteration: int | None = None,
    every: bool = False,
    overrides: list[str] | None = None,
    store: str | None = None,
) -> list[dict[str, Any]]:
    """Evaluate a run's policies. The same call resumes an interrupted evaluation.

    Args:
        evaluation: YAML file of the evaluation.
        run: the run whose policies are evaluated.
        iteration: t of the policy π_t, 0 being the run's start; default: the last one.
        every: all policies of the run, except the baseline itself where it is one of them.
        overrides: `section.key=value`, on top of the file.
        store: folder or s3://bucket/prefix; default: the environment's OPTUNE_STORE, else .optune/store.

    Returns:
        The records, as the run's ledger holds them.
    """
    quiet_known_errors()
    store = store_url(store)
    config = load_evaluation(evaluation, overrides or [])
    subject = open_evaluation(store, config, run, iteration, every)
    check_store(store)
    return [commit_evaluation(store, config, subject, outcome) for outcome in outcomes(store, config, subject)]
