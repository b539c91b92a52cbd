"""What `optune alpaca` prints."""

from __future__ import annotations

from typing import Any

from rich.text import Text

from optune_core.cli.tables import plain_table, wide_console
from optune_core.reports.win_rate import COLUMNS, win_rate_cells


def print_win_rates(run: str, records: list[dict[str, Any]]) -> None:
    """Win rates of a run's policies in one evaluation, a line each."""
    console = wide_console()
    first = records[0]
    table = plain_table(
        Text(f"{first['name']}: policies of run {run} against {first['reference']}, {first['prompts']} prompts")
    )
    for name in COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for record in records:
        table.add_row(*win_rate_cells(record))
    console.print(table)
    console.print(f"annotator: {first['annotator']}", soft_wrap=True, markup=False)
