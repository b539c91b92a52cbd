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
    """Relaunch the runs that were interrupted and that nobody works on. May be repeated at any time.

    The store decides: finished, failed and stopped runs stay so, as does a run whose last starts committed nothing.
    A run is lost if neither its lease nor its flow run in Prefect has moved while this flow watched both.

    Args:
        store: folder or s3://bucket/prefix; default: the environment's OPTUNE_STORE, else .optune/store.
        deployment: the one to start runs with, as flow/name.

    Returns:
        Names of the runs that were relaunched.
    """
    quiet_known_errors()
    store = store_url(store)
    objects = open_store(store).objects
    seen = suspects(objects)
    before = active_flow_runs(store, list(seen))
    lost = unmoved(objects, seen)
    return [run for run in lost if relaunch(store, run, seen[run].starts, deployment, before.get(run))]
