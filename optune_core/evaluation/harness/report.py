"""Benchmark results for people, laid out as Table 3: a row a policy, a column a task, then their average."""

from __future__ import annotations

from typing import Any

from optune_core.evaluation.harness.results import SHARES

Row = dict[str, Any]


def benchmark_columns(record: Row) -> list[str]:
    """Heads of the columns."""
    return ["t", *map(_head, record["tasks"]), "average"]


def benchmark_cells(record: Row) -> list[str]:
    """A record as the cells of these columns: per cent where a metric is a share, with its standard error."""
    tasks = record["tasks"]
    mean = record["average"]
    return [str(record["iteration"]), *map(_cell, tasks), "–" if mean is None else f"{100 * mean:.2f}"]


def benchmark_note(record: Row) -> str:
    """How the results were come by."""
    config = record["config"]
    said = [
        f"lm-evaluation-harness {config['harness']}, {config['engine']['type']}",
        "questions in the policy's chat template" if config["chat_template"] else "no chat template",
        "task versions " + ", ".join(f"{task['task']} {task['version']}" for task in record["tasks"]),
    ]
    if config["limit"] is not None:
        said.append(f"ONLY THE FIRST {config['limit']} QUESTIONS of each task")
    return "; ".join(said) + ". Per cent ± standard error, where a metric is a share."


def benchmark_markdown(run: str, record: Row) -> str:
    """One policy's results."""
    columns = [head.replace("\n", " ") for head in benchmark_columns(record)]
    lines = [
        f"# Benchmark {record['name']}: policy {record['iteration']} of {run}",
        f"| {' | '.join(columns)} |",
        "|---" * len(columns) + "|",
        f"| {' | '.join(benchmark_cells(record))} |",
        "",
        benchmark_note(record),
    ]
    return "\n".join(lines)


def _head(task: Row) -> str:
    metric = task["metric"] if task["filter"] == "none" else f"{task['metric']}, {task['filter']}"
    return f"{task['task']}\n{task['num_fewshot']}-shot {metric}"


def _cell(task: Row) -> str:
    scale, digits = (100, 2) if task["metric"] in SHARES else (1, 4)
    spread = "" if task["stderr"] is None else f" ± {scale * task['stderr']:.{digits}f}"
    return f"{scale * task['value']:.{digits}f}{spread}"
