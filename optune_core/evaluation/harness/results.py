"""The results of the harness for one policy: each task's metric, and the mean over the tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optune_core.errors import OptuneError
from optune_core.evaluation.harness.section import HarnessTask

SHARES = frozenset({"acc", "acc_norm", "acc_bytes", "acc_mutual_info", "acc_all", "exact_match", "f1"})
"""Metrics between 0 and 1: shown in per cent, and averaged, as the paper does."""


def task_results(tasks: Sequence[HarnessTask], made: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the wanted metric of each task.

    Args:
        made: metrics of the artifacts, in the order of the tasks.

    Raises:
        OptuneError: the harness computed no such metric.
    """
    results = []
    for task, found in zip(tasks, made, strict=True):
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


def average(results: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the plain mean over the tasks, as in Table 3; None where a metric is not a share."""
    if any(result["metric"] not in SHARES for result in results):
        return None
    return float(sum(result["value"] for result in results) / len(results))
