"""The local stack through its commands: start, a flow through a worker, a lost part, stop."""

import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import s3fs
import yaml
from prefect.cli.deploy._models import PrefectYamlModel
from prefect.events.schemas.automations import AutomationCore

from deployments.local.orchestrator import POOLS
from deployments.local.stack import AUTOMATIONS, REPOSITORY, Stack
from tests.waiting import PATIENCE, until

FLOW = """
import os
import s3fs
from prefect import flow

@flow
def hello(word: str, store: str) -> None:
    s3fs.S3FileSystem().pipe_file(f"{store}/hello", word.encode())
"""

DEPLOYMENTS = """
pull:
  - prefect.deployments.steps.set_working_directory: {directory: "{{ $OPTUNE_ROOT }}"}
deployments:
  - name: test
    entrypoint: flows/hello.py:hello
    parameters: {store: "s3://optune"}
    enforce_parameter_schema: true
    concurrency_limit: {limit: 1, collision_strategy: ENQUEUE}
    work_pool: {name: gpu-pool}
"""


AUTOMATION_NAMES = [wanted["name"] for wanted in yaml.safe_load(AUTOMATIONS.read_text())["automations"]]


@pytest.fixture
def stack() -> Iterator[Stack]:
    # Not tmp_path: pytest closes its folders to other users, and under root PostgreSQL runs as one.
    with tempfile.TemporaryDirectory(prefix="optune-") as temporary:
        project = Path(temporary) / "project"
        (project / "flows").mkdir(parents=True)
        (project / "flows/hello.py").write_text(FLOW)
        (project / "prefect.yaml").write_text(DEPLOYMENTS)
        stack = Stack(Path(temporary) / "stack", project, "prefect.yaml", ui_port=None, s3_port=None)
        try:
            yield stack
        finally:
            stack.down()


def command(stack: Stack, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "deployments.local", *arguments, "--folder", str(stack.folder)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def up(stack: Stack) -> str:
    options = [
        "--project",
        str(stack.project),
        "--prefect-file",
        "prefect.yaml",
        "--ui-port=0",
        "--s3-port=0",
    ]
    done = command(stack, "up", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def pids(stack: Stack) -> dict[str, int]:
    running = {daemon.name: daemon.running() for daemon in stack.daemons()}
    return {name: process.pid for name, process in running.items() if process}


def automations(stack: Stack) -> list[dict[str, str]]:
    return [
        {name: found[name] for name in ("id", "name")} for found in stack.server.call("POST", "/automations/filter", {})
    ]


def run_deployment(stack: Stack, word: str) -> str:
    """Run `hello/test` and return the name of the state in which it ended."""
    call = stack.server.call
    deployment = call("GET", "/deployments/name/hello/test")["id"]
    run = call("POST", f"/deployments/{deployment}/create_flow_run", {"parameters": {"word": word}})["id"]

    def end() -> str | None:
        state = call("GET", f"/flow_runs/{run}")["state"]
        return state["name"] if state["type"] in ("COMPLETED", "FAILED", "CRASHED") else None

    return until(end)


def stored(stack: Stack) -> bytes:
    s3 = s3fs.S3FileSystem(
        key=stack.s3.access_key,
        secret=stack.s3.secret_key,
        endpoint_url=stack.s3.endpoint_url,
        skip_instance_cache=True,
    )
    return s3.cat_file("optune/hello")


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.stack
@pytest.mark.timeout(3000)
def test_the_stack_starts_runs_a_flow_replaces_a_lost_part_and_stops(stack: Stack) -> None:
    printed = up(stack)
    assert stack.server.ui_url in printed
    assert stack.s3.secret_key not in printed
    assert stat.S_IMODE(stack.env_file.stat().st_mode) == 0o600
    pools = {pool["name"]: pool for pool in stack.server.call("POST", "/work_pools/filter", {})}
    assert {name: pool["concurrency_limit"] for name, pool in pools.items()} == {
        "cpu-pool": None,
        "gpu-pool": 1,
    }
    assert run_deployment(stack, "hello") == "Completed"
    assert stored(stack) == b"hello"

    created = automations(stack)
    assert {found["name"] for found in created} == set(AUTOMATION_NAMES)
    assert len(created) == len(AUTOMATION_NAMES)

    before = pids(stack)
    assert len(before) == 5
    os.kill(before["SeaweedFS"], signal.SIGKILL)
    up(stack)
    assert automations(stack) == created
    after = pids(stack)
    assert {name for name in before if before[name] != after[name]} == {"SeaweedFS"}
    assert stored(stack) == b"hello"

    family = {p.pid for pid in after.values() for p in psutil.Process(pid).children(recursive=True)}
    done = command(stack, "down")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [pid for pid in family | set(after.values()) if is_alive(pid)] == []
    assert not any(pids(stack))

    assert command(stack, "down", "--wipe").returncode == 0
    assert not stack.folder.exists()


def test_the_deployments_are_valid_and_their_pools_exist() -> None:
    file = yaml.safe_load((REPOSITORY / "deployments/prefect.yaml").read_text())
    deployments = PrefectYamlModel.model_validate(file).deployments
    assert {deployment.work_pool.name for deployment in deployments} <= set(POOLS)


def test_every_deployment_sends_the_heartbeats_that_the_automation_waits_for() -> None:
    file = yaml.safe_load((REPOSITORY / "deployments/prefect.yaml").read_text())
    heartbeats = {
        int(deployment["work_pool"]["job_variables"]["env"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"])
        for deployment in file["deployments"]
    }
    automations = [
        AutomationCore.model_validate(wanted) for wanted in yaml.safe_load(AUTOMATIONS.read_text())["automations"]
    ]
    (window,) = (
        a.trigger.within.total_seconds() for a in automations if "prefect.flow-run.heartbeat" in a.trigger.after
    )
    assert window >= 3 * max(heartbeats)


@pytest.mark.stack
def test_a_part_that_does_not_start_is_reported_with_its_log(stack: Stack) -> None:
    stack.s3._command = lambda: [sys.executable, "-c", "print('no disk'); raise SystemExit(3)"]  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match=r"SeaweedFS ended while starting(.|\n)*log.txt(.|\n)*no disk"):
        stack.s3.start()


@pytest.mark.stack
def test_down_spares_another_process_with_the_pid_of_a_part(stack: Stack) -> None:
    stranger = subprocess.Popen(["sleep", "3600"])
    try:
        daemon = stack.s3.daemon
        daemon.adopt(stranger.pid)
        daemon.pid_file.write_text(daemon.pid_file.read_text().replace('"birth": "', '"birth": "another '))
        stack.down()
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()
