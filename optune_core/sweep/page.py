"""The page of a sweep in Prefect's UI."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from optune_core.reports.picture import data_image
from optune_core.sweep.results import CellResult
from optune_core.sweep.sharing import Sharing
from optune_core.sweep.tables import TextTable, notes, sharing_text, sweep_tables


def sweep_markdown(sweep: str, results: Sequence[CellResult], shared: Sharing, figures: Sequence[Path]) -> str:
    """Return tables, what sharing saved, and the figures as data images, which the UI shows."""
    parts = [f"# Sweep {sweep}", sharing_text(shared), *notes(results)]
    parts += [_markdown(table) for table in reversed(sweep_tables(sweep, results))]
    for figure in figures:
        parts.append(f"![{figure.stem}]({data_image(figure.read_text(encoding='utf-8'))})")
    return "\n\n".join(parts)


def _markdown(table: TextTable) -> str:
    lines = [
        f"## {table.title}",
        "",
        f"| {' | '.join(table.header)} |",
        "|---" + "|---:" * (len(table.header) - 1) + "|",
    ]
    return "\n".join([*lines, *[f"| {' | '.join(row)} |" for row in table.rows]])
