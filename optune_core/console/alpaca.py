"""Output of `optune alpaca`."""

from __future__ import annotations

from typing import Any

from optune_core.console.tables import print_table
from optune_core.evaluation.alpaca_eval.report import COLUMNS, win_rate_cells


def print_win_rates(run: str, records: list[dict[str, Any]]) -> None:
    """Print the win rates of a run's policies in one evaluation, a line each."""
    first = records[0]
    print_table(
        f"{first['name']}: policies of run {run} against {first['reference']}, {first['prompts']} prompts",
        COLUMNS,
        map(win_rate_cells, records),
        f"annotator: {first['annotator']}",
    )
