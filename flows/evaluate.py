"""Flow `evaluate`: the win score of a run's policies against a baseline (Eq. 7)."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.request import store_url
from optune_core.evaluation.loading import load_evaluation
from optune_core.evaluation.win_score.config import IterationBaseline, ModelBaseline
from optune_core.storage import Ref
from tasks.evaluate import (
    EvaluationContext,
    PromptTable,
    answer,
    answers_of_policy,
    commit_comparison,
    count_wins,
    find_judge,
    find_prompts,
    judge_pairs,
    open_evaluation,
    read_baseline,
    template_for,
)
from tasks.prepare import check_store, import_model
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
    """Judge a run's policies against a baseline, each pair of responses in both orders. The same call continues.

    Args:
        evaluation: YAML file of the evaluation.
        run: the run whose policies are judged.
        iteration: t of the policy π_t; default: the last one.
        every: all policies of the run, but for the baseline itself.
        overrides: `section.key=value`, on top of the file.
        store: folder or s3://bucket/prefix; default: the environment's OPTUNE_STORE, else .optune/store.

    Returns:
        The records of the comparisons, as the run's ledger holds them.
    """
    quiet_known_errors()
    store = store_url(store)
    config = load_evaluation(evaluation, overrides or [])
    context = open_evaluation(store, run, config, iteration, every)
    check_store(store)
    judge = find_judge(context)
    table = find_prompts(context)
    baseline, model = answers_of_baseline(context, table)
    answers = [answers_of_policy(context, t, table) for t in context.iterations]
    records = []
    for t, judged in zip(context.iterations, judge_pairs(context, judge, table, answers, baseline), strict=True):
        (summary,) = count_wins(context, judge, judged)
        records.append(commit_comparison(context, t, judge, model, judged, summary))
    return records


def answers_of_baseline(context: EvaluationContext, table: PromptTable) -> tuple[list[Ref], Ref | None]:
    """The baseline's responses, and the model that gave them where it is known."""
    baseline = context.config.baseline
    if isinstance(baseline, IterationBaseline):
        model = Ref.from_json(context.policies[baseline.iteration])
        return answers_of_policy(context, baseline.iteration, table), model
    if isinstance(baseline, ModelBaseline):
        (model,) = import_model(context.store, baseline, "policy")
        return answer(context, "baseline", 0, model, template_for(context, model, table)), model
    return read_baseline(context, baseline, table), None
