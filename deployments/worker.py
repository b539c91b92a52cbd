"""A Prefect worker that lets its flow runs save their work when it is ended.

`python -m deployments.worker --pool gpu-pool …` takes the options of `prefect worker start`.

On SIGTERM Prefect's process worker kills its flow runs at once: no checkpoint is written, and the flow runs remain in
state Running and hold their leases until a timeout. This worker takes no more work on SIGTERM, passes the signal on to
its flow runs, gives them GRACE_SECONDS to save and to release their leases, and reports that they crashed. The
automation in automations.yaml then queues them for another worker.

Use it on machines that may be taken away, and let their notice (30 s and more on every cloud) end it:
`docker stop --time 30`; under systemd `KillMode=mixed` and `TimeoutStopSec=30`, since by default systemd also signals
Prefect's own process, which then kills the flow runs. As the only command of a container it gets Kubernetes' signal.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from typing import Any
from uuid import UUID

import psutil

from deployments.local.processes import signal_all, wait_gone
from optune_core.process.die_with_parent import PARENT

GRACE_SECONDS = 28.0
"""Time in seconds from the signal to the end of the worker. A stage's process needs at most 26 of them."""


def main() -> int:
    """Run a worker until it ends or this process gets SIGTERM or SIGINT. Returns the exit status."""
    prefect = [sys.executable, "-m", "prefect", "--no-prompt", "worker", "start", *sys.argv[1:]]
    signal.signal(signal.SIGTERM, _on_signal)
    signal.signal(signal.SIGINT, _on_signal)
    # In its own session, because Ctrl-C in a terminal would otherwise reach it, and it would kill its flow runs.
    worker = subprocess.Popen(
        [sys.executable, "-m", "optune_core.process.die_with_parent", *prefect],
        env=os.environ | {PARENT: str(os.getpid())},
        start_new_session=True,
    )
    try:
        return worker.wait()
    except SystemExit:
        with contextlib.suppress(psutil.NoSuchProcess):  # the worker has ended in the meantime
            end(worker.pid)
        worker.wait()
        return 0


def end(worker: int) -> None:
    """Let a worker's flow runs save their work, report them to Prefect as crashed, and end the worker."""
    process = psutil.Process(worker)
    process.suspend()  # so that it takes no more work and cannot kill its flow runs
    flow_runs = {run: run.environ().get("PREFECT__FLOW_RUN_ID") for run in process.children()}
    signal_all(flow_runs, signal.SIGTERM)
    late = wait_gone(flow_runs, GRACE_SECONDS)
    # Killed, not continued: it would report its runs as crashed again, when another worker may already have them.
    signal_all([process, *late], signal.SIGKILL)
    try:
        _report([run for run in flow_runs.values() if run])
    except Exception as error:  # without Prefect's server; it will notice the missing heartbeats
        print(
            f"The flow runs were ended, but this could not be reported to Prefect's server: {error!r}. "
            "The server notices their missing heartbeats after 90 s.",
            file=sys.stderr,
        )


def _report(flow_runs: list[str]) -> None:
    """Set the state of these flow runs to Crashed, unless they have reported how they ended."""
    from prefect.client.orchestration import get_client
    from prefect.states import Crashed

    with get_client(sync_client=True) as client:
        for run in map(UUID, flow_runs):
            state = client.read_flow_run(run).state
            if state is not None and not state.is_final():
                client.set_flow_run_state(run, Crashed(message="Its worker was ended by a signal."))


def _on_signal(number: int, frame: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise SystemExit


if __name__ == "__main__":
    raise SystemExit(main())
