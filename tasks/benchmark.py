"""Tasks of lm-evaluation-harness on the policies of a run."""

from __future__ import annotations

from typing import Any

from prefect import get_run_logger
from pydantic import BaseModel

from optune_core.evaluation.harness import tasks
from optune_core.evaluation.harness.config import BenchmarkConfig
from optune_core.evaluation.harness.report import benchmark_markdown
from optune_core.evaluation.harness.results import average, check_benchmark, recorded_config, task_results
from optune_core.evaluation.subject import asked_iterations, policies, run_config
from optune_core.storage import Ledger, Ref
from tasks.records import artifact_key, show_page
from tasks.support.stage import make, open_store, stage_task


class BenchmarkContext(BaseModel):
    """What the tasks of a benchmark need to know."""

    store: str
    run: str
    config: BenchmarkConfig
    policies: list[Ref]
    """π_0, π_1, …"""
    iterations: list[int]
    """That are evaluated."""


@stage_task("open benchmark")
def open_benchmark(
    store: str, run: str, config: BenchmarkConfig, iteration: int | None, every: bool
) -> BenchmarkContext:
    """Refuse what cannot be done, before anything is spent on it."""
    ledger = Ledger(open_store(store).objects, run)
    run_config(ledger)
    known = policies(ledger)
    asked = asked_iterations(ledger, None, len(known), iteration, every=every)
    check_benchmark(ledger, config)
    return BenchmarkContext(store=store, run=run, config=config, policies=known, iterations=asked)


@stage_task("benchmark", "benchmark policy {iteration}")
def run_benchmark(context: BenchmarkContext, iteration: int) -> Any:
    """The results of π_iteration, an artifact a task."""
    spec = tasks.Spec(benchmark=context.config, policy=context.policies[iteration])
    return make(context.store, "benchmark", spec)


@stage_task("commit benchmark")
def commit_benchmark(context: BenchmarkContext, iteration: int, made: list[Ref]) -> dict[str, Any]:
    """Record the results in the run's ledger, tied to the policy's digest, and show them."""
    store, config = open_store(context.store), context.config
    results = task_results(config, [store.manifest(ref).metrics for ref in made])
    record = {
        "kind": "harness",
        "name": config.name,
        "iteration": iteration,
        "policy": context.policies[iteration].to_json(),
        "tasks": [result | {"artifact": ref.to_json()} for result, ref in zip(results, made, strict=True)],
        "average": average(results),
        "config": recorded_config(config),
    }
    standing = Ledger(store.objects, context.run).commit_evaluation(config.name, iteration, record)
    show_page(
        key=artifact_key(context.run, config.name, f"policy-{iteration}"),
        markdown=benchmark_markdown(context.run, standing),
        description=f"Benchmark {config.name} of policy {iteration} of run {context.run}",
    )
    found = {task["task"]: task["value"] for task in standing["tasks"]}
    get_run_logger().info("benchmark %s of policy %d: %s", config.name, iteration, found)
    return standing
