"""The flow runs behind the runs of a store, and how a lost one is started again."""

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
_AT_WORK = [StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING, StateType.PAUSED, StateType.CANCELLING]
_PENDING = timedelta(minutes=10)
"""What a worker is given to bring a flow run from Pending to Running: a cluster may start a machine for it."""
_ATTEMPTS = 5
"""Flow runs created for one interrupted start; that many that never took the lease have a reason for it."""


class ActiveFlowRun(BaseModel):
    """A flow run that is not over, in the state in which it was seen."""

    flow_run: str
    state: str


def active_flow_runs(store: str, runs: Sequence[str]) -> dict[str, ActiveFlowRun]:
    """What Prefect has at work for these runs of a store: the newest flow run for each, where there is one."""
    if not runs:
        return {}
    with get_client(sync_client=True) as client:
        return {run: _seen(found) for run in runs if (found := _newest(client, store, run))}


@task(name="relaunch", task_run_name="relaunch {run}")
def relaunch(store: str, run: str, starts: int, deployment: str, before: ActiveFlowRun | None) -> bool:
    """Start a run that nobody works on again, unless Prefect is about to.

    Args:
        starts: how often the run was started; a flow run that is created for it is created once.
        deployment: the one to create a flow run of.
        before: what was at work for the run before its lease was watched. A flow run that has changed its state since
            is alive, and left to itself.

    Returns:
        Whether it was started.
    """
    with get_client(sync_client=True) as client:
        found = _newest(client, store, run)
        if (_seen(found) if found else None) != before:
            get_run_logger().info("run %s: its flow run has moved meanwhile, it is left to that", run)
            return False
        if found is None or found.deployment_id is None:
            return _create(client, store, run, starts, deployment)
        if _is_waiting(found):
            get_run_logger().info("run %s: flow run %s is %s, it is left to that", run, found.id, _state(found).name)
            return False
        message = f"{_state(found).name}, though nobody holds the lease of run {run}"
        client.set_flow_run_state(found.id, AwaitingRetry(message=message), force=True)
        get_run_logger().warning("run %s: flow run %s goes on; it was %s", run, found.id, message)
        return True


def _create(client: SyncPrefectClient, store: str, run: str, starts: int, deployment: str) -> bool:
    """A new flow run that needs nothing but the store. Several resumers, and repeated ones, create one."""
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
        "run %s: %d flow runs in a row ended before they took its lease. It is not started again by itself: look at "
        "the last one, %s, mend the cause, then start the run once by hand",
        run,
        _ATTEMPTS,
        created.id,
    )
    return False


def _newest(client: SyncPrefectClient, store: str, run: str) -> FlowRun | None:
    """The flow run that is not over, of a run of this store; of several the one that came last."""
    found = client.read_flow_runs(
        flow_filter=FlowFilter(name=FlowFilterName(any_=[_FLOW])),
        flow_run_filter=FlowRunFilter(
            name=FlowRunFilterName(any_=[run]),
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=_AT_WORK)),
        ),
    )
    ours = [flow_run for flow_run in found if _is_of(flow_run, store)]
    return max(ours, key=lambda flow_run: _state(flow_run).timestamp, default=None)


def _is_of(flow_run: FlowRun, store: str) -> bool:
    """Whether it works in this store. One that does not say which works in its own machine's default."""
    named = flow_run.parameters.get("store")
    try:
        return named is None or open_objects(named).url == open_objects(store).url
    except StoreError:
        return False


def _is_waiting(flow_run: FlowRun) -> bool:
    """Whether Prefect, or a person, will move it on by itself."""
    state = _state(flow_run)
    if state.is_pending():
        return datetime.now(UTC) - state.timestamp < _PENDING
    return not state.is_running()


def _seen(flow_run: FlowRun) -> ActiveFlowRun:
    return ActiveFlowRun(flow_run=str(flow_run.id), state=str(_state(flow_run).id))


def _state(flow_run: FlowRun) -> Any:
    assert flow_run.state is not None, "a flow run that was created has a state"
    return flow_run.state
