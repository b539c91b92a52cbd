"""Flow `sweep`: a grid of runs whose common work is computed once, compared in tables and figures."""

from __future__ import annotations

from pathlib import Path

from prefect import flow
from prefect.runtime import flow_run

from flows.evaluate import evaluate
from flows.request import store_url
from optune_core.errors import OptuneError
from optune_core.evaluation.loading import load_evaluation
from optune_core.sweep.grid import Cell, load_sweep
from tasks.prepare import check_store
from tasks.support.logs import quiet_known_errors
from tasks.support.stage import open_store
from tasks.sweep import import_models, publish_sweep, record_cells
from tasks.sweep_cells import CellHere, CellOnPool, RunningCell, check_failures, compute


def _run_name() -> str:
    return f"sweep {Path(flow_run.parameters['config']).stem}"


@flow(name="sweep", flow_run_name=_run_name)
def sweep(
    config: str,
    overrides: list[str] | None = None,
    store: str | None = None,
    deployment: str | None = None,
    parallel: int | None = None,
    figures: str | None = None,
) -> list[str]:
    """Compute the cells of a sweep. The same call continues an interrupted sweep, and computes cells added to its file.

    Args:
        config: YAML file of the sweep.
        overrides: `section.key=value` on top of its base configuration, for all cells.
        store: folder or s3://bucket/prefix; default: the environment's OPTUNE_STORE, else .optune/store.
        deployment: deployment that runs cells, such as optune/iterate; default: processes of this machine.
        parallel: cells at once on this machine; default: `parallel` of the file.
        figures: folder for a further copy of the figures; default: they are kept in the store only.

    Returns:
        Paths or URLs of the figures.

    Raises:
        OptuneError: the sweep is invalid, or cells failed; the other cells were computed nevertheless.
    """
    quiet_known_errors()
    store = store_url(store)
    overrides = overrides or []
    wanted = load_sweep(config, overrides)
    evaluation = wanted.config.evaluation
    if evaluation is not None:
        load_evaluation(evaluation)
    check_store(store)
    record_cells(store, wanted)
    import_models(store, wanted)

    here = parallel or wanted.config.parallel

    def start(cell: Cell) -> RunningCell:
        if deployment is not None:
            return CellOnPool(deployment, cell, wanted.config.base, overrides, store)
        return CellHere(cell, wanted.config.base, overrides, store, here)

    at_once = None if deployment is not None else here
    failed = compute(open_store(store).objects, wanted.cells, start, at_once)
    if evaluation is not None:
        failed |= evaluate_cells(store, evaluation, [cell.run for cell in wanted.cells if cell.run not in failed])
    places = publish_sweep(store, wanted, figures)
    check_failures(wanted.config.name, failed, len(wanted.cells))
    return places


def evaluate_cells(store: str, evaluation: str, runs: list[str]) -> dict[str, str]:
    """Evaluate all policies of these runs; committed records are found, not made again.

    Returns:
        Why runs could not be evaluated, by their names.
    """
    failed: dict[str, str] = {}
    for run in runs:
        try:
            evaluate(evaluation, run, every=True, store=store)
        except OptuneError as error:
            failed[run] = f"evaluation: {error}"
    return failed
