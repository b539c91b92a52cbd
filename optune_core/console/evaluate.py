"""Output of `optune evaluate`."""

from __future__ import annotations

from typing import Any

from optune_core.console.tables import print_table
from optune_core.evaluation.win_score.report import COLUMNS, comparison_cells


def print_comparisons(run: str, records: list[dict[str, Any]]) -> None:
    """Print the win scores of a run's policies in one evaluation, a line each."""
    first = records[0]
    print_table(
        f"{first['name']}: policies of run {run} against {first['baseline']}, {first['prompts']} prompts",
        COLUMNS,
        map(comparison_cells, records),
        f"judge: {first['judge']}",
    )
