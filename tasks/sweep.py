"""Tasks of a sweep: record its cells, import their models, publish tables and figures."""

from __future__ import annotations

import tempfile
from pathlib import Path

from prefect import get_run_logger

from optune_core.data.model_folder import Model
from optune_core.errors import ConfigDrift
from optune_core.rewards.reward import ModelRole
from optune_core.storage import Ledger
from optune_core.storage.sweeps import SweepRecord
from optune_core.sweep.figures import draw_figures
from optune_core.sweep.grid import Sweep
from optune_core.sweep.page import sweep_markdown
from optune_core.sweep.results import read_cells
from optune_core.sweep.sharing import sharing
from tasks.prepare import import_model
from tasks.records import artifact_key, show_page
from tasks.support.stage import open_store, stage_task


@stage_task("record cells")
def record_cells(store: str, sweep: Sweep) -> None:
    """Record which runs are the sweep's cells.

    Raises:
        ConfigDrift: cells were begun with another configuration; all of them are reported together.
    """
    objects = open_store(store).objects
    drifts = []
    for cell in sweep.cells:
        try:
            Ledger(objects, cell.run).check(cell.config)
        except ConfigDrift as drift:
            drifts.append(str(drift))
    if drifts:
        raise ConfigDrift(
            f"sweep {sweep.config.name!r}: {len(drifts)} of its cells were begun with another configuration. Restore "
            "it, or give the sweep another name; unchanged stages are reused\n" + "\n".join(drifts)
        )
    record = SweepRecord(objects, sweep.config.name)
    for cell in sweep.cells:
        record.add(cell.run, cell.values)


def import_models(store: str, sweep: Sweep) -> None:
    """Bring the models of all cells into the store before the first cell starts, each model once."""
    named: dict[tuple[str, str | None], tuple[ModelRole, Model]] = {}
    for cell in sweep.cells:
        policy, reward = cell.config.policy, cell.config.reward
        named[policy.model, policy.revision] = ("policy", policy)
        if isinstance(reward, Model) and reward.model_role is not None:
            named[reward.model, reward.revision] = (reward.model_role, reward)
    for role, source in named.values():
        import_model(store, source, role)


@stage_task("publish sweep")
def publish_sweep(store: str, sweep: Sweep, figures: str | None) -> list[str]:
    """Draw tables and figures, show them in the UI and keep the figures beside the sweep's record.

    Args:
        figures: folder for a further copy of the figures; None: they are kept in the store only.

    Returns:
        Paths of the figures in that folder; without one, their places in the store.
    """
    name, artifacts = sweep.config.name, open_store(store)
    results = read_cells(artifacts, sweep.cells)
    shared = sharing(artifacts, [result.run for result in results])
    with tempfile.TemporaryDirectory(prefix="optune-") as temporary:
        drawn = draw_figures(name, results, Path(figures or temporary))
        record = SweepRecord(artifacts.objects, name)
        places = [record.keep_figure(file) for file in drawn]
        markdown = sweep_markdown(name, results, shared, drawn)
    show_page(key=artifact_key("sweep", name), markdown=markdown, description=f"Sweep {name}")
    get_run_logger().info(
        "figures of sweep %s: %s", name, ", ".join(places) or "none, since no cell has committed an iteration"
    )
    return [str(file) for file in drawn] if figures else places
