"""Results of the harness for people, laid out as Table 3: a row a policy, a column a task, then their average."""

from __future__ import annotations

from typing import Any

from optune_core.evaluation.harness.results import SHARES

Row = dict[str, Any]


def columns(record: Row) -> list[str]:
    """Return the heads of the columns, of two lines each."""
    return ["t", *map(_head, record["metrics"]["tasks"]), "average"]


def cells(record: Row) -> list[str]:
    """Return a record's cells: per cent where a metric is a share, with its standard error."""
    mean = record["metrics"]["average"]
    shown = map(_cell, record["metrics"]["tasks"])
    return [str(record["iteration"]), *shown, "–" if mean is None else f"{100 * mean:.2f}"]


def about(record: Row) -> str:
    """Return how the tasks were run."""
    config = record["config"]
    parts = [
        f"lm-evaluation-harness {config['harness']}, {config['engine']['type']}",
        "questions in the policy's chat template" if config["chat_template"] else "no chat template",
        "task versions " + ", ".join(f"{task['task']} {task['version']}" for task in record["metrics"]["tasks"]),
    ]
    if config["limit"] is not None:
        parts.append(f"ONLY THE FIRST {config['limit']} QUESTIONS of each task")
    return "; ".join(parts)


def _head(task: Row) -> str:
    metric = task["metric"] if task["filter"] == "none" else f"{task['metric']}, {task['filter']}"
    return f"{task['task']}\n{task['num_fewshot']}-shot {metric}"


def _cell(task: Row) -> str:
    scale, digits = (100, 2) if task["metric"] in SHARES else (1, 4)
    spread = "" if task["stderr"] is None else f" ± {scale * task['stderr']:.{digits}f}"
    return f"{scale * task['value']:.{digits}f}{spread}"
