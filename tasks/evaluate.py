"""The tasks of an evaluation. Each step is a stage that the kind of evaluation asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from prefect import get_run_logger
from pydantic import BaseModel

from optune_core.evaluation.evaluation import Evaluation, Outcome
from optune_core.evaluation.records import markdown, open_subject, record_of
from optune_core.evaluation.subject import Subject
from optune_core.storage import Ledger, Ref
from tasks.records import artifact_key, show_page
from tasks.support.stage import make, open_store, stage_task


@stage_task("open evaluation")
def open_evaluation(store: str, config: Evaluation, run: str, iteration: int | None, every: bool) -> Subject:
    """Find the policies, and refuse what cannot be evaluated before work is spent."""
    return open_subject(open_store(store), config, run, iteration, every=every)


def outcomes(store: str, config: Evaluation, subject: Subject) -> Iterator[Outcome]:
    """Evaluate one policy after the other, with a task for each stage."""

    def make_step(title: str, stage: str, spec: BaseModel) -> list[Ref]:
        made: list[Ref] = _step(title.partition(":")[0])(store, title, stage, spec)
        return made

    return config.outcomes(open_store(store), subject, make_step)


@cache
def _step(name: str) -> Callable[[str, str, str, BaseModel], Any]:
    """Return the task of this name; its runs are named by their title, such as `answer: policy 1`."""

    @stage_task(name, "{title}")
    def step(store: str, title: str, stage: str, spec: BaseModel) -> Any:
        return make(store, stage, spec)

    return step


@stage_task("commit evaluation", "commit evaluation: policy {outcome.iteration}")
def commit_evaluation(store: str, config: Evaluation, subject: Subject, outcome: Outcome) -> dict[str, Any]:
    """Record the outcome in the run's ledger, and show it."""
    artifacts, run, iteration = open_store(store), subject.run, outcome.iteration
    record = record_of(config, subject, outcome)
    committed = Ledger(artifacts.objects, run).commit_evaluation(config.name, iteration, record)
    show_page(
        key=artifact_key(run, config.name, f"policy-{iteration}"),
        markdown=markdown(artifacts, run, committed),
        description=f"{config.label} {config.name!r} of policy {iteration} of run {run}",
    )
    get_run_logger().info("%s of policy %d: %s", config.label, iteration, committed["metrics"])
    return committed
