"""What a run records of a benchmark: each task's metric for one policy, and the mean over the tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optune_core.errors import OptuneError
from optune_core.evaluation.harness.config import BenchmarkConfig
from optune_core.evaluation.harness.library import harness_version, include_identity
from optune_core.evaluation.subject import refuse_drift
from optune_core.storage import Ledger

SHARES = frozenset({"acc", "acc_norm", "acc_bytes", "acc_mutual_info", "acc_all", "exact_match", "f1"})
"""Metrics between 0 and 1: shown in per cent, and averaged, as the paper does."""


def check_benchmark(ledger: Ledger, config: BenchmarkConfig) -> None:
    """Refuse other results under a name that has some already, of whichever policy: they stand in one table.

    Raises:
        ConfigDrift: those of this name were made with another configuration.
        OptuneError, DataError: the harness or the folder `include` is not there.
    """
    recorded = recorded_config(config)
    for standing in ledger.evaluations("harness"):
        if standing["name"] == config.name:
            made = f"benchmark {config.name!r} of run {ledger.run!r} has results of policy {standing['iteration']}"
            refuse_drift(f"{made} that were made", standing, recorded)


def recorded_config(config: BenchmarkConfig) -> dict[str, Any]:
    """The configuration as a record holds it: without what changes no result, with the tasks' definitions."""
    recorded = {name: value for name, value in config.identity().items() if name != "include"}
    return recorded | {"harness": harness_version(), "include": include_identity(config.include)}


def task_results(config: BenchmarkConfig, made: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The wanted metric of each task.

    Args:
        made: metrics of the artifacts, in the order of the tasks.

    Raises:
        OptuneError: the harness computed no such metric.
    """
    results = []
    for task, found in zip(config.tasks, made, strict=True):
        value = found["metrics"].get(f"{task.metric},{task.filter}")
        if value is None:
            known = ", ".join(sorted(key for key in found["metrics"] if "_stderr," not in key))
            raise OptuneError(
                f"task {task.task!r}: there is no finite {task.metric!r} with filter {task.filter!r} among its "
                f"results (metric,filter): {known}. Name one of these"
            )
        results.append(
            task.model_dump()
            | {
                "value": value,
                "stderr": found["metrics"].get(f"{task.metric}_stderr,{task.filter}"),
                "questions": found["questions"],
                "version": found["version"],
            }
        )
    return results


def average(results: list[dict[str, Any]]) -> float | None:
    """The plain mean over the tasks, as in Table 3; None where a metric is no share."""
    if any(result["metric"] not in SHARES for result in results):
        return None
    return float(sum(result["value"] for result in results) / len(results))
