"""The ways back after a preemption, on the real stack: the automation, the flow `resume`, a worker that ends well."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
import psutil
import pytest

from deployments.local.processes import environment
from deployments.local.stack import REPOSITORY, Stack
from optune_core.storage import Ledger, interrupted, lease, open_objects
from optune_core.storage.lease import LeaseRecord, read_lease, take
from tests.faults.oracle import assert_sound, run_facts
from tests.faults.test_kills import SMALL
from tests.tiny import write_config

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]
stack_test = pytest.mark.stack
T = TypeVar("T")


def until(find: Callable[[], T], seconds: float = 240.0) -> T:
    """The first true answer."""
    deadline = time.monotonic() + seconds
    while not (found := find()):
        assert time.monotonic() < deadline, f"nothing after {seconds:.0f} s"
        time.sleep(0.1)
    return found


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
            stack.down(say=lambda line: None)


def up(stack: Stack) -> None:
    """`make up`, without the schedule of `resume`: here each resumption has its time."""
    stack.up(say=lambda line: None)
    stack.server.call("PATCH", f"/deployments/{deployment(stack, 'resume/interrupted')}", {"paused": True})


def deployment(stack: Stack, name: str) -> str:
    return str(stack.server.call("GET", f"/deployments/name/{name}")["id"])


def create(stack: Stack, name: str, parameters: dict[str, Any]) -> str:
    path = f"/deployments/{deployment(stack, name)}/create_flow_run"
    return str(stack.server.call("POST", path, {"parameters": parameters})["id"])


@dataclass(frozen=True)
class Run:
    """A run of the deployment `optune/iterate`, as the stack, the store and the system show it."""

    stack: Stack
    store: str
    name: str
    flow_run: str

    @classmethod
    def start(cls, stack: Stack, config: Path, store: str, name: str) -> Run:
        asked = {"config": str(config), "store": store, "run": name, "train_deployment": None}
        return cls(stack, store, name, create(stack, "optune/iterate", asked))

    def process(self) -> psutil.Process | None:
        """The flow's process."""
        worker = self.stack.workers[0].daemon.running()
        for process in worker.children(recursive=True) if worker else []:
            try:
                if process.environ().get("PREFECT__FLOW_RUN_ID") == self.flow_run:
                    return process
            except psutil.Error:
                continue
        return None

    def child(self) -> psutil.Process | None:
        """The process of the stage at work."""
        process = self.process()
        for child in process.children() if process else []:
            try:
                if "optune_core.worker" in child.cmdline():
                    return child
            except psutil.Error:
                continue
        return None

    def in_the_middle(self) -> psutil.Process:
        """Wait for a stage of iteration 1; returns the flow's process."""
        until(lambda: Ledger(open_objects(self.store), self.name).iteration(0))
        until(self.child)
        process = self.process()
        assert process is not None
        return process

    def lease(self) -> LeaseRecord:
        record = read_lease(open_objects(self.store), self.name)
        assert record is not None
        return record

    def states(self) -> list[str]:
        history = self.stack.server.call("GET", f"/flow_run_states/?flow_run_id={self.flow_run}")
        return [state["name"] for state in sorted(history, key=lambda state: state["timestamp"])]

    def finish(self) -> dict[str, Any]:
        """Wait until the run has finished; returns what must be equal for equal runs."""
        until(lambda: self.lease().state == "finished")
        assert_sound(self.store, self.name)
        return run_facts(self.store, self.name)


@pytest.fixture(scope="module")
def config(tiny: Path) -> Path:
    return write_config(tiny, name="ways-back", **SMALL)


@pytest.fixture(scope="module")
def uninterrupted(stack: Stack, config: Path) -> dict[str, Any]:
    run = Run.start(stack, config, "s3://optune/uninterrupted", "uninterrupted")
    facts = until(lambda: _is_over(stack, run.flow_run)) and run.finish()
    assert run.lease().starts == 1
    return facts


def _is_over(stack: Stack, flow_run: str) -> bool:
    state = stack.server.call("GET", f"/flow_runs/{flow_run}")["state"]["type"]
    assert state not in ("FAILED", "CANCELLED")
    return bool(state == "COMPLETED")


def flow_runs(stack: Stack, store: str) -> list[dict[str, Any]]:
    """All flow runs of `optune` in a store."""
    found = stack.server.call("POST", "/flow_runs/filter", {"flows": {"name": {"any_": ["optune"]}}, "limit": 200})
    return [run for run in found if run["parameters"]["store"] == store]


@stack_test
def test_a_killed_flow_is_brought_back_by_the_automation(
    stack: Stack, config: Path, uninterrupted: dict[str, Any], tally: defaultdict[str, float]
) -> None:
    run = Run.start(stack, config, "s3://optune/automation", "automation")
    run.in_the_middle().kill()
    assert run.finish() == uninterrupted
    until(lambda: _is_over(stack, run.flow_run))
    assert [name for name in run.states() if name in ("Crashed", "AwaitingRetry")] == ["Crashed", "AwaitingRetry"]
    assert run.lease().starts == 2
    tally["ways back: automation"] += 1


@stack_test
def test_runs_lost_with_their_worker_are_brought_back_by_resume(
    stack: Stack, config: Path, uninterrupted: dict[str, Any], tally: defaultdict[str, float]
) -> None:
    """Two at once. The automation would come back to them only when their heartbeats are missed, in 90 s."""
    store = "s3://optune/resume"
    runs = [Run.start(stack, config, store, name) for name in ("one", "two")]
    flows = [run.in_the_middle() for run in runs]
    worker = stack.workers[0]
    guard = worker.daemon.running()
    assert guard is not None
    for process in [guard, *guard.children(), *flows]:
        process.kill()
    worker.daemon.start(worker.command, stack.run_settings())

    resumer = create(stack, "resume/interrupted", {"store": store})
    until(lambda: _is_over(stack, resumer))
    assert [run.states()[:5].count("AwaitingRetry") for run in runs] == [1, 1]
    again = create(stack, "resume/interrupted", {"store": store})
    assert [run.finish() for run in runs] == [uninterrupted, uninterrupted]
    until(lambda: _is_over(stack, again))
    assert [run.lease().starts for run in runs] == [2, 2]
    assert len(flow_runs(stack, store)) == 2
    tally["ways back: resume"] += 2


@stack_test
def test_a_run_is_brought_back_when_only_the_store_remembers_it(
    stack: Stack, config: Path, uninterrupted: dict[str, Any], tally: defaultdict[str, float]
) -> None:
    store = "s3://optune/wiped"
    run = Run.start(stack, config, store, "wiped")
    run.in_the_middle()
    stack.server.daemon.stop()
    asyncio.run(empty_the_database(stack))
    up(stack)
    until(lambda: run.lease().state == "interrupted")  # its flow run is unknown, and ends over that
    assert flow_runs(stack, store) == []

    code = f"from flows.resume import resume; resume({store!r})"
    settings = environment(stack.run_settings())
    resumers = [subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, env=settings) for _ in range(2)]
    assert [resumer.wait(120) for resumer in resumers] == [0, 0]
    assert run.finish() == uninterrupted
    assert [flow_run["name"] for flow_run in flow_runs(stack, store)] == ["wiped"]
    tally["ways back: resume from the store alone"] += 1


async def empty_the_database(stack: Stack) -> None:
    connection = await asyncpg.connect(host=str(stack.postgres.data), user="postgres", database="postgres")
    await connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    await connection.close()


@stack_test
def test_a_worker_that_is_told_to_end_leaves_nothing_behind_and_its_run_goes_on(
    stack: Stack, config: Path, uninterrupted: dict[str, Any], tally: defaultdict[str, float]
) -> None:
    run = Run.start(stack, config, "s3://optune/told", "told")
    stage = until(run.child)
    stage.terminate()  # the stage alone: its task tries again
    run.in_the_middle()
    assert run.lease().starts == 1

    worker = stack.workers[0]
    guard = worker.daemon.running()
    assert guard is not None
    family = [guard, *guard.children(recursive=True)]
    told = time.monotonic()
    guard.terminate()
    until(lambda: worker.daemon.running() is None, 30)
    assert time.monotonic() - told < 30
    assert [process for process in family[1:] if process.is_running()] == []
    assert (run.lease().state, run.lease().holder) == ("interrupted", None)
    until(lambda: run.states()[-1] == "AwaitingRetry", 30)

    worker.daemon.start(worker.command, stack.run_settings())
    assert run.finish() == uninterrupted
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
def test_a_run_is_lost_if_it_was_interrupted_and_nobody_is_at_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], lost: bool
) -> None:
    monkeypatch.setattr(interrupted, "WATCH_SECONDS", 0.5)
    monkeypatch.setattr(interrupted, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.1)
    objects = open_objects(str(tmp_path / "store"))
    alive = take(objects, "alive", {})
    record = replace(alive._record, **({"holder": "gone", "process": None} | changes))
    objects.create("runs/other/lease.json", record.to_bytes())
    objects.create("runs/never-started/run.json", b"{}")
    objects.create("runs/Not A Name/lease.json", record.to_bytes())
    seen = interrupted.suspects(objects)
    assert interrupted.unmoved(objects, seen) == (["other"] if lost else [])
    alive.release("finished")
    assert interrupted.unmoved(objects, seen) == (["other"] if lost else [])
