"""Output of `optune sweep --table`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from optune_core.console.tables import plain_table, wide_console
from optune_core.storage import ArtifactStore, open_objects
from optune_core.storage.sweeps import SweepRecord
from optune_core.sweep.figures import draw_figures
from optune_core.sweep.grid import Sweep
from optune_core.sweep.results import read_cells
from optune_core.sweep.sharing import sharing
from optune_core.sweep.tables import TextTable, notes, sharing_text, sweep_tables

_CONSOLE = wide_console(120)


def print_sweep(store_url: str, sweep: Sweep, figures: str | None = None) -> None:
    """Print the tables of a sweep's committed results.

    Args:
        figures: folder for the figures; None: they are not drawn.
    """
    store = ArtifactStore(open_objects(store_url))
    name = sweep.config.name
    results = read_cells(store, sweep.cells)
    for table in sweep_tables(name, results):
        _CONSOLE.print(_rich(table))
    lines = [sharing_text(sharing(store, [result.run for result in results])), *notes(results)]
    listed = {cell.run for cell in sweep.cells}
    if earlier := [cell["run"] for cell in SweepRecord(store.objects, name).cells() if cell["run"] not in listed]:
        lines.append(f"Cells of earlier starts that the file no longer names: {', '.join(earlier)}")
    if figures is not None:
        lines += _drawn_lines(draw_figures(name, results, Path(figures)))
    for line in lines:
        _CONSOLE.print(line, soft_wrap=True, markup=False, highlight=False)


def _drawn_lines(drawn: Sequence[Path]) -> list[str]:
    return [f"figure: {file}" for file in drawn] or ["No figures: no cell is complete yet."]


def _rich(table: TextTable) -> Table:
    made = plain_table(table.title)
    first, *others = table.header
    made.add_column(first, no_wrap=True)
    for name in others:
        made.add_column(name, justify="right", no_wrap=True)
    for row in table.rows:
        made.add_row(*row)
    return made
