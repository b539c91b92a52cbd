"""Output of `optune benchmark`."""

from __future__ import annotations

from typing import Any

from optune_core.console.tables import print_table
from optune_core.evaluation.harness.report import benchmark_cells, benchmark_columns, benchmark_note


def print_benchmarks(run: str, records: list[dict[str, Any]]) -> None:
    """Print the results of a run's policies in one benchmark, a line each."""
    first = records[0]
    columns = benchmark_columns(first)
    print_table(
        f"{first['name']}: policies of run {run}",
        columns,
        map(benchmark_cells, records),
        benchmark_note(first),
        width=28 * len(columns),
    )
