"""A Prefect worker that ends well: `python -m deployments.worker --pool gpu-pool …`, as `prefect worker start`.

Prefect's process worker, told to end by SIGTERM, kills its flow runs at once: no checkpoint is written, they stay
Running and their leases held until somebody notices. This one, told so, takes no more work, passes SIGTERM on to its
flow runs, gives them GRACE_SECONDS to save and to release their lease, and reports that they crashed, whereupon the
automation (automations.yaml) queues them for another worker.

Start it so on machines that may be taken away, and have their notice (30 s and more on every cloud) end it:
`docker stop --time 30`; under systemd `KillMode=mixed` and `TimeoutStopSec=30`, since by default systemd signals
Prefect's own process as well, which then kills. As the one command of a container it is what Kubernetes signals.
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
"""From the signal to the end: 26 of them are a stage's."""


def main() -> int:
    """Run a worker until it ends, or until this process is told to end."""
    prefect = [sys.executable, "-m", "prefect", "--no-prompt", "worker", "start", *sys.argv[1:]]
    signal.signal(signal.SIGTERM, _told_to_end)
    signal.signal(signal.SIGINT, _told_to_end)
    # Its own session: Ctrl-C in a terminal would reach it, and through it the flow runs' end.
    worker = subprocess.Popen(
        [sys.executable, "-m", "optune_core.process.die_with_parent", *prefect],
        env=os.environ | {PARENT: str(os.getpid())},
        start_new_session=True,
    )
    try:
        return worker.wait()
    except SystemExit:
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended by itself
            end(worker.pid)
        worker.wait()
        return 0


def end(worker: int) -> None:
    """Let a worker's flow runs save what they have, report them, and end the worker."""
    process = psutil.Process(worker)
    process.suspend()  # takes no more work; and would kill what it has
    flow_runs = {run: run.environ().get("PREFECT__FLOW_RUN_ID") for run in process.children()}
    signal_all(flow_runs, signal.SIGTERM)
    late = wait_gone(flow_runs, GRACE_SECONDS)
    # Killed, not continued: it would report its runs as crashed again, when another worker may have them by then.
    signal_all([process, *late], signal.SIGKILL)
    try:
        _report([run for run in flow_runs.values() if run])
    except Exception as error:  # Prefect's server is away: the flow runs are missed by their heartbeats
        print(f"The flow runs were ended, which could not be reported: {error!r}", file=sys.stderr)


def _report(flow_runs: list[str]) -> None:
    """Tell Prefect that these flow runs crashed, if they did not say how they ended."""
    from prefect.client.orchestration import get_client
    from prefect.states import Crashed

    with get_client(sync_client=True) as client:
        for run in map(UUID, flow_runs):
            state = client.read_flow_run(run).state
            if state is not None and not state.is_final():
                client.set_flow_run_state(run, Crashed(message="Its worker was told to end."))


def _told_to_end(number: int, frame: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise SystemExit


if __name__ == "__main__":
    raise SystemExit(main())
