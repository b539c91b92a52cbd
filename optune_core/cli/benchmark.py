"""What `optune benchmark` prints."""

from __future__ import annotations

from typing import Any

from rich.text import Text

from optune_core.cli.tables import plain_table, wide_console
from optune_core.reports.benchmark import benchmark_cells, benchmark_columns, benchmark_note


def print_benchmarks(run: str, records: list[dict[str, Any]]) -> None:
    """Results of a run's policies in one benchmark, a line each."""
    first = records[0]
    columns = benchmark_columns(first)
    console = wide_console(28 * len(columns))
    table = plain_table(Text(f"{first['name']}: policies of run {run}"))
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for record in records:
        table.add_row(*benchmark_cells(record))
    console.print(table)
    console.print(benchmark_note(first), soft_wrap=True, markup=False)
