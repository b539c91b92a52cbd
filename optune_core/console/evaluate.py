"""Output of `optune evaluate`."""

from __future__ import annotations

from typing import Any

from optune_core.console.tables import print_table
from optune_core.evaluation.records import tables


def print_evaluation(run: str, records: list[dict[str, Any]]) -> None:
    """Print a run's records of one evaluation, a row a policy."""
    (table,) = tables(records)
    note = "\n".join(line for line in (table.about, table.note) if line)
    print_table(f"{table.title}, policies of run {run}", table.columns, table.rows, note)
