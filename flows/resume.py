"""Flow `resume`: start the interrupted runs of a store again."""

from __future__ import annotations

from prefect import flow

from flows.request import store_url
from optune_core.storage.interrupted import suspects, unmoved
from tasks.resume import active_flow_runs, relaunch
from tasks.support.logs import quiet_known_errors
from tasks.support.stage import open_store


@flow(name="resume")
def resume(store: str | None = None, deployment: str = "optune/iterate") -> list[str]:
    """Relaunch the interrupted runs that no process works on. It may be repeated at any time.

    The store decides: a run that finished, failed or was stopped is not relaunched, nor is one whose last starts
    committed nothing. A run counts as interrupted if neither its lease nor its flow run in Prefect changed while this
    flow watched both.

    Args:
        store: folder or s3://bucket/prefix; default: the environment's OPTUNE_STORE, else .optune/store.
        deployment: deployment that runs are started with, as flow/name.

    Returns:
        Names of the relaunched runs.
    """
    quiet_known_errors()
    store = store_url(store)
    objects = open_store(store).objects
    seen = suspects(objects)
    before = active_flow_runs(store, list(seen))
    lost = unmoved(objects, seen)
    return [run for run in lost if relaunch(store, run, seen[run].starts, deployment, before.get(run))]
