"""The page of a sweep in Prefect's UI."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from optune_core.reports.picture import data_image
from optune_core.sweep.results import CellResult
from optune_core.sweep.sharing import Sharing
from optune_core.sweep.tables import notes, sharing_text, sweep_tables
from optune_core.words import markdown_table


def sweep_markdown(sweep: str, results: Sequence[CellResult], shared: Sharing, figures: Sequence[Path]) -> str:
    """Return tables, what sharing saved, and the figures as data images, which the UI shows."""
    parts = [f"# Sweep {sweep}", sharing_text(shared), *notes(results)]
    for table in reversed(sweep_tables(sweep, results)):
        parts += [f"## {table.title}", markdown_table(table.header, table.rows)]
    for figure in figures:
        parts.append(f"![{figure.stem}]({data_image(figure.read_text(encoding='utf-8'))})")
    return "\n\n".join(parts)
