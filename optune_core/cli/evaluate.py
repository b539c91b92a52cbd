"""What `optune evaluate` prints."""

from __future__ import annotations

from typing import Any

from rich.text import Text

from optune_core.cli.tables import plain_table, wide_console
from optune_core.reports.comparison import COLUMNS, comparison_cells


def print_comparisons(run: str, records: list[dict[str, Any]]) -> None:
    """Win scores of a run's policies in one evaluation, a line each."""
    console = wide_console()
    first = records[0]
    table = plain_table(
        Text(f"{first['name']}: policies of run {run} against {first['baseline']}, {first['prompts']} prompts")
    )
    for name in COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for record in records:
        table.add_row(*comparison_cells(record))
    console.print(table)
    console.print(f"judge: {first['judge']}", soft_wrap=True, markup=False)
