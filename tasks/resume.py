"""Flow runs of the runs of a store, and the restart of lost ones."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from prefect import get_run_logger, task
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterName,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.states import AwaitingRetry
from pydantic import BaseModel

from optune_core.errors import StoreError
from optune_core.storage import open_objects

_FLOW = "optune"
_ACTIVE = [StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING, StateType.PAUSED, StateType.CANCELLING]
_PENDING = timedelta(minutes=10)
"""Time that a worker may take to bring a flow run from Pending to Running: a cluster may start a machine for it."""
_ATTEMPTS = 5
"""Flow runs that are created for one interrupted start. If none of them took the lease, trying again is useless."""


class ActiveFlowRun(BaseModel):
    """A flow run that has not ended, in the state in which it was seen."""

    flow_run: str
    """Id of the flow run."""
    state: str
    """Id of its state."""


def active_flow_runs(store: str, runs: Sequence[str]) -> dict[str, ActiveFlowRun]:
    """Return the latest active flow run of each of these runs of a store, by run, where there is one."""
    if not runs:
        return {}
    with get_client(sync_client=True) as client:
        return {run: _seen(found) for run in runs if (found := _newest(client, store, run))}


@task(name="relaunch", task_run_name="relaunch {run}")
def relaunch(store: str, run: str, starts: int, deployment: str, before: ActiveFlowRun | None) -> bool:
    """Start a run again on which no process works, unless Prefect is about to start it.

    Args:
        store: URL of the store.
        run: name of the run.
        starts: number of starts of the run so far. For the same number a flow run is created only once.
        deployment: deployment of which a flow run is created, as flow/name.
        before: active flow run of the run before its lease was watched. If it has changed its state since then it is
            alive, and nothing is done.

    Returns:
        Whether the run was started.
    """
    with get_client(sync_client=True) as client:
        found = _newest(client, store, run)
        if (_seen(found) if found else None) != before:
            get_run_logger().info("run %s is not restarted: its flow run has changed its state and is alive", run)
            return False
        if found is None or found.deployment_id is None:
            return _create(client, store, run, starts, deployment)
        if _is_waiting(found):
            get_run_logger().info(
                "run %s is not restarted: its flow run %s is %s and will continue it", run, found.id, _state(found).name
            )
            return False
        message = f"{_state(found).name}, although no process holds the lease of run {run}"
        client.set_flow_run_state(found.id, AwaitingRetry(message=message), force=True)
        get_run_logger().warning("run %s: flow run %s is restarted; it was %s", run, found.id, message)
        return True


def _create(client: SyncPrefectClient, store: str, run: str, starts: int, deployment: str) -> bool:
    """Create a flow run that reads everything from the store. Repeated and concurrent calls create only one."""
    target = client.read_deployment_by_name(deployment)
    for attempt in range(_ATTEMPTS):
        created = client.create_flow_run_from_deployment(
            target.id,
            name=run,
            parameters={"config": None, "overrides": None, "store": store, "run": run},
            idempotency_key=f"resume {store} {run}/{starts}/{attempt}",
        )
        if not _state(created).is_final():
            get_run_logger().warning("run %s: flow run %s of %s was created", run, created.id, deployment)
            return True
    get_run_logger().error(
        "run %s: %d flow runs in a row ended before they took its lease, so it is not restarted any more. Look at the "
        "last one, %s, fix the cause, then start the run once by hand",
        run,
        _ATTEMPTS,
        created.id,
    )
    return False


def _newest(client: SyncPrefectClient, store: str, run: str) -> FlowRun | None:
    """Return the latest active flow run of a run of this store, or None."""
    found = client.read_flow_runs(
        flow_filter=FlowFilter(name=FlowFilterName(any_=[_FLOW])),
        flow_run_filter=FlowRunFilter(
            name=FlowRunFilterName(any_=[run]),
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=_ACTIVE)),
        ),
    )
    ours = [flow_run for flow_run in found if _is_of(flow_run, store)]
    return max(ours, key=lambda flow_run: _state(flow_run).timestamp, default=None)


def _is_of(flow_run: FlowRun, store: str) -> bool:
    """Return whether a flow run works in this store, or names no store and so may."""
    named = flow_run.parameters.get("store")
    try:
        return named is None or open_objects(named).url == open_objects(store).url
    except StoreError:
        return False


def _is_waiting(flow_run: FlowRun) -> bool:
    """Return whether a flow run will continue without our help: Prefect or a person changes its state."""
    state = _state(flow_run)
    if state.is_pending():
        return datetime.now(UTC) - state.timestamp < _PENDING
    return not state.is_running()


def _seen(flow_run: FlowRun) -> ActiveFlowRun:
    return ActiveFlowRun(flow_run=str(flow_run.id), state=str(_state(flow_run).id))


def _state(flow_run: FlowRun) -> Any:
    assert flow_run.state is not None, "a flow run that was created has a state"
    return flow_run.state
