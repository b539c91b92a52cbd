"""What `optune evaluate` prints."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from optune_core.reports.comparison import COLUMNS, comparison_cells


def print_comparisons(run: str, records: list[dict[str, Any]]) -> None:
    """Win scores of a run's policies in one evaluation, a line each."""
    console = Console(width=max(100, Console().width))
    first = records[0]
    table = Table(
        title=Text(f"{first['name']}: policies of run {run} against {first['baseline']}, {first['prompts']} prompts"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for name in COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for record in records:
        table.add_row(*comparison_cells(record))
    console.print(table)
    console.print(f"judge: {first['judge']}", soft_wrap=True, markup=False)
