"""Resumption after a preemption on the real stack: the automation, the flow `resume`, a worker that gets SIGTERM."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import psutil
import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName
from prefect.client.schemas.objects import State
from prefect.logging import disable_run_logger
from prefect.states import Crashed, Failed, Pending, Running, Scheduled

from deployments.local.processes import environment, wait_gone
from deployments.local.stack import REPOSITORY, Stack
from flows.run import optune
from optune_core.storage import Ledger, interrupted, lease, open_objects
from optune_core.storage.lease import LeaseRecord, read_lease, take
from tasks.resume import active_flow_runs, relaunch
from tests.faults.oracle import assert_sound
from tests.tiny import write_config
from tests.waiting import PATIENCE, until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3000)]
stack_test = pytest.mark.stack


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    # Not tmp_path: pytest closes its folders to other users, and under root PostgreSQL runs as one.
    with tempfile.TemporaryDirectory(prefix="optune-") as temporary, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPTUNE_LEASE_SECONDS", "6")
        stack = Stack(Path(temporary) / "stack", ui_port=None, s3_port=None)
        try:
            up(stack)
            for name, value in stack.s3.environment().items():
                patch.setenv(name, value)
            yield stack
        finally:
            stack.down(echo=lambda line: None)


def up(stack: Stack) -> None:
    """Start the stack without the schedule of `resume`, which tests call themselves."""
    stack.up(echo=lambda line: None)
    stack.server.call("PATCH", f"/deployments/{deployment(stack, 'resume/interrupted')}", {"paused": True})


def deployment(stack: Stack, name: str) -> str:
    return str(stack.server.call("GET", f"/deployments/name/{name}")["id"])


def create(stack: Stack, name: str, parameters: dict[str, Any]) -> str:
    path = f"/deployments/{deployment(stack, name)}/create_flow_run"
    return str(stack.server.call("POST", path, {"parameters": parameters})["id"])


@dataclass(frozen=True)
class Run:
    """A run of the deployment `optune/iterate`, seen through the stack, the store and the system."""

    stack: Stack
    store: str
    name: str
    flow_run: str

    @classmethod
    def start(cls, stack: Stack, config: Path, store: str, name: str, iterations: int = 1) -> Run:
        asked = {"config": str(config), "overrides": [f"iterations={iterations}"], "store": store, "run": name}
        return cls(stack, store, name, create(stack, "optune/iterate", asked | {"train_deployment": None}))

    def process(self) -> psutil.Process | None:
        """Return the process of the flow."""
        worker = self.stack.workers[0].daemon.running()
        for process in worker.children(recursive=True) if worker else []:
            try:
                if process.environ().get("PREFECT__FLOW_RUN_ID") == self.flow_run:
                    return process
            except psutil.Error:
                continue
        return None

    def child(self, stage: str) -> psutil.Process | None:
        """Return the process of a stage while it works."""
        process = self.process()
        for child in process.children() if process else []:
            try:
                if child.cmdline()[2:4] == ["optune_core.stages.worker", stage]:
                    return child
            except psutil.Error:
                continue
        return None

    def lease(self) -> LeaseRecord:
        record = read_lease(open_objects(self.store), self.name)
        assert record is not None
        return record

    def states(self) -> list[str]:
        history = self.stack.server.call("GET", f"/flow_run_states/?flow_run_id={self.flow_run}")
        return [state["name"] for state in sorted(history, key=lambda state: state["timestamp"])]

    def finish(self) -> list[Any]:
        """Wait until the run has finished; returns what must be equal for equal runs."""
        until(lambda: self.lease().state == "finished")
        assert_sound(self.store, self.name)
        records = Ledger(open_objects(self.store), self.name).iterations()
        return [{name: value for name, value in record.items() if name != "timing"} for record in records]


@pytest.fixture(scope="module")
def config(tiny: Path) -> Path:
    """The smallest configuration that has every stage, since each is a process that takes seconds to start."""
    return write_config(
        tiny,
        name="ways-back",
        prompts={"sample": 8, "held_out": 0},
        generation={"shard_size": 4, "max_tokens": 6},
        training={"checkpoint_every": "0s"},
        replaced={"held_out": {}},
    )


@pytest.fixture(scope="module")
def uninterrupted(stack: Stack, config: Path) -> Run:
    """Start two iterations that run beside the first test. A run with fewer has the same first ones."""
    return Run.start(stack, config, "s3://optune/uninterrupted", "uninterrupted", iterations=2)


def _is_over(stack: Stack, flow_run: str) -> bool:
    state = stack.server.call("GET", f"/flow_runs/{flow_run}")["state"]["type"]
    assert state not in ("FAILED", "CANCELLED")
    return bool(state == "COMPLETED")


def flow_runs(stack: Stack, store: str) -> list[dict[str, Any]]:
    """Return all flow runs of `optune` in a store."""
    found = stack.server.call("POST", "/flow_runs/filter", {"flows": {"name": {"any_": ["optune"]}}, "limit": 200})
    return [run for run in found if run["parameters"]["store"] == store]


@stack_test
def test_a_killed_flow_is_resumed_by_the_automation(
    stack: Stack, config: Path, uninterrupted: Run, tally: defaultdict[str, float]
) -> None:
    run = Run.start(stack, config, "s3://optune/automation", "automation", iterations=2)
    until(lambda: Ledger(open_objects(run.store), run.name).iteration(0))
    flow = until(run.process)
    until(lambda: run.child("responses"))
    flow.kill()
    assert run.finish() == uninterrupted.finish()
    assert uninterrupted.lease().starts == 1
    until(lambda: _is_over(stack, run.flow_run))
    assert [name for name in run.states() if name in ("Crashed", "AwaitingRetry")] == ["Crashed", "AwaitingRetry"]
    assert run.lease().starts == 2
    tally["ways back: automation"] += 1


@pytest.mark.long
@stack_test
def test_runs_lost_with_their_worker_are_resumed_by_the_flow_resume(
    stack: Stack, config: Path, uninterrupted: Run, tally: defaultdict[str, float]
) -> None:
    """The automation would resume them only when their heartbeats are missed, after 90 s."""
    store = "s3://optune/resume"
    runs = [Run.start(stack, config, store, name) for name in ("one", "two")]
    for run in runs:
        until(lambda run=run: run.child("responses"))
    worker = stack.workers[0]
    guard = worker.daemon.running()
    assert guard is not None
    for process in [guard, *guard.children(recursive=True)]:
        process.kill()
    worker.daemon.start(worker.command, stack.run_settings())

    resumer = create(stack, "resume/interrupted", {"store": store})
    until(lambda: _is_over(stack, resumer))
    assert [run.states()[:5].count("AwaitingRetry") for run in runs] == [1, 1]
    again = create(stack, "resume/interrupted", {"store": store})
    expected = uninterrupted.finish()[:1]
    assert [run.finish() for run in runs] == [expected, expected]
    until(lambda: _is_over(stack, again))
    assert [run.lease().starts for run in runs] == [2, 2]
    assert len(flow_runs(stack, store)) == 2
    tally["ways back: resume"] += 2


@stack_test
def test_a_run_that_only_the_store_knows_is_resumed_once(
    stack: Stack, config: Path, uninterrupted: Run, tally: defaultdict[str, float]
) -> None:
    store = "s3://optune/wiped"
    run = Run.start(stack, config, store, "wiped")
    until(lambda: run.child("responses"))
    stack.server.daemon.stop()
    asyncio.run(empty_the_database(stack))
    up(stack)
    until(lambda: run.lease().state == "interrupted")  # its flow run is unknown, and ends over that
    assert flow_runs(stack, store) == []

    code = f"from flows.resume import resume; resume({store!r})"
    settings = environment(stack.run_settings())
    resumers = [subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, env=settings) for _ in range(2)]
    assert [resumer.wait(PATIENCE) for resumer in resumers] == [0, 0]
    assert run.finish() == uninterrupted.finish()[:1]
    assert [flow_run["name"] for flow_run in flow_runs(stack, store)] == ["wiped"]
    tally["ways back: resume from the store alone"] += 1


async def empty_the_database(stack: Stack) -> None:
    connection = await asyncpg.connect(host=str(stack.postgres.data), user="postgres", database="postgres")
    await connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    await connection.close()


@stack_test
def test_a_worker_that_gets_sigterm_leaves_no_process_and_its_run_is_resumed(
    stack: Stack, config: Path, uninterrupted: Run, tally: defaultdict[str, float]
) -> None:
    run = Run.start(stack, config, "s3://optune/asked", "asked")
    until(lambda: run.child("responses")).terminate()  # the stage alone: its task tries again
    until(lambda: run.child("policy"))
    assert run.lease().starts == 1

    worker = stack.workers[0]
    guard = worker.daemon.running()
    assert guard is not None
    family = [guard, *guard.children(recursive=True)]
    asked = time.monotonic()
    guard.terminate()
    until(lambda: worker.daemon.running() is None)
    assert time.monotonic() - asked < 30
    assert wait_gone(family, 0) == []
    assert (run.lease().state, run.lease().holder) == ("interrupted", None)
    until(lambda: run.states()[-1] == "AwaitingRetry")

    worker.daemon.start(worker.command, stack.run_settings())
    assert run.finish() == uninterrupted.finish()[:1]
    assert run.lease().starts == 2
    tally["ways back: SIGTERM"] += 1


@pytest.mark.parametrize(
    ("changes", "lost"),
    [
        ({"state": "interrupted", "holder": None}, True),
        ({"state": "working"}, True),
        ({"state": "working", "fruitless": lease.MAX_FRUITLESS}, False),
        ({"state": "stopped", "holder": None}, False),
        ({"state": "failed", "holder": None}, False),
        ({"state": "finished", "holder": None}, False),
    ],
)
def test_a_run_is_lost_if_it_was_interrupted_and_no_holder_beats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], lost: bool
) -> None:
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.1)
    objects = open_objects(str(tmp_path / "store"))
    alive = take(objects, "alive", {})
    record = replace(alive._record, **({"holder": "gone", "process": None} | changes))
    objects.create("runs/other/lease.json", record.to_bytes())
    objects.create("runs/never-started/run.json", b"{}")
    objects.create("runs/Not A Name/lease.json", record.to_bytes())
    seen = interrupted.suspects(objects)
    clock = 0.0

    def pause(seconds: float) -> None:
        """Pause until the holder that is alive has beaten."""
        nonlocal clock
        clock += seconds
        until(lambda: read_lease(objects, "alive") != seen["alive"])

    monkeypatch.setattr(interrupted, "time", SimpleNamespace(monotonic=lambda: clock, sleep=pause))
    assert interrupted.unmoved(objects, seen) == (["other"] if lost else [])
    alive.release("finished")
    assert interrupted.unmoved(objects, seen) == (["other"] if lost else [])


@pytest.fixture
def client(prefect_server: None) -> Iterator[SyncPrefectClient]:
    with disable_run_logger(), get_client(sync_client=True) as client:
        yield client


@pytest.fixture
def launch(client: SyncPrefectClient) -> Callable[[str, bool, State], str]:
    """Make a flow run of `optune` for a run, of a deployment or of a shell, in a state."""
    flow = client.create_flow_from_name("optune")
    target = client.create_deployment(flow, name="iterate", parameters={"train_deployment": "train/gpu"})

    def make(run: str, deployed: bool, state: State) -> str:
        parameters = {"store": STORE, "run": run}
        if deployed:
            made = client.create_flow_run_from_deployment(target, name=run, parameters=parameters)
        else:
            made = client.create_flow_run(optune, name=run, parameters=parameters)
        client.set_flow_run_state(made.id, state, force=True)
        return str(made.id)

    return make


STORE = "s3://somewhere/store"


def known(client: SyncPrefectClient, run: str) -> dict[str, str]:
    """Return the flow runs of that name with the names of their states."""
    named = FlowRunFilter(name=FlowRunFilterName(any_=[run]))
    return {str(found.id): str(found.state_name) for found in client.read_flow_runs(flow_run_filter=named)}


@pytest.mark.parametrize(
    ("deployed", "state", "expected"),
    [
        (True, Running(), ["AwaitingRetry"]),
        (True, Pending(), None),
        (True, Scheduled(), None),
        (True, Crashed(), ["Crashed", "Scheduled"]),
        (True, Failed(), ["Failed", "Scheduled"]),
        (False, Running(), ["Running", "Scheduled"]),
    ],
    ids=lambda value: value.name if isinstance(value, State) else "",
)
def test_a_lost_run_is_started_once_unless_prefect_will_start_it(
    client: SyncPrefectClient, launch: Callable[..., str], deployed: bool, state: State, expected: list[str] | None
) -> None:
    run = f"lost-{uuid4().hex[:8]}"
    launch(run, deployed, state)
    before = active_flow_runs(STORE, [run])
    assert relaunch.fn(STORE, run, 1, "optune/iterate", before.get(run)) == (expected is not None)
    if expected is None:
        assert list(known(client, run).values()) == [state.name]
        return
    assert sorted(known(client, run).values()) == expected
    assert not relaunch.fn(STORE, run, 1, "optune/iterate", before.get(run)), "it has moved"
    assert sorted(known(client, run).values()) == expected


def test_a_flow_run_that_no_worker_brings_to_running_is_queued_again(
    client: SyncPrefectClient, launch: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = f"lost-{uuid4().hex[:8]}"
    made = launch(run, True, Pending())
    before = active_flow_runs(STORE, [run])
    monkeypatch.setattr("tasks.resume._PENDING", timedelta(0))
    assert relaunch.fn(STORE, run, 1, "optune/iterate", before[run])
    assert known(client, run) == {made: "AwaitingRetry"}


def test_flow_runs_that_never_take_the_lease_are_created_five_times_at_most(
    client: SyncPrefectClient, launch: Callable[..., str]
) -> None:
    run = f"lost-{uuid4().hex[:8]}"
    launched = []
    while relaunch.fn(STORE, run, 3, "optune/iterate", None):
        (new,) = known(client, run).keys() - launched
        client.set_flow_run_state(UUID(new), Crashed(), force=True)
        launched.append(new)
    assert len(launched) == 5
    assert relaunch.fn(STORE, run, 4, "optune/iterate", None), "started by hand since, it is another case"
