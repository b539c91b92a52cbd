"""Flow `alpaca`: AlpacaEval 2's length-controlled win rate of a run's policies."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.request import store_url
from optune_core.evaluation.loading import load_alpaca
from tasks.alpaca import annotate, commit_win_rate, control_length, open_alpaca
from tasks.evaluate import answers_of_policy, find_prompts
from tasks.prepare import check_store
from tasks.support.logs import quiet_known_errors


@flow(name="alpaca", flow_run_name="alpaca {run}")
def alpaca(
    evaluation: str,
    run: str,
    iteration: int | None = None,
    every: bool = False,
    overrides: list[str] | None = None,
    store: str | None = None,
) -> list[dict[str, Any]]:
    """Have a run's policies answer AlpacaEval's instructions, and the answers annotated. The same call continues.

    Args:
        evaluation: YAML file of the evaluation.
        run: the run whose policies are evaluated.
        iteration: t of the policy π_t; default: the last one.
        every: all policies of the run.
        overrides: `section.key=value`, on top of the file.
        store: folder or s3://bucket/prefix; default: the environment's OPTUNE_STORE, else .optune/store.

    Returns:
        The records of the win rates, as the run's ledger holds them.
    """
    quiet_known_errors()
    store = store_url(store)
    context = open_alpaca(store, run, load_alpaca(evaluation, overrides or []), iteration, every)
    check_store(store)
    table = find_prompts(context)
    records = []
    for t in context.iterations:
        annotations = annotate(context, t, table, answers_of_policy(context, t, table))
        (summary,) = control_length(context, annotations)
        records.append(commit_win_rate(context, t, annotations, summary))
    return records
