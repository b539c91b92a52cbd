"""A Prefect worker that ends well: `python -m deployments.worker --pool gpu-pool …`, as `prefect worker start`.

Prefect's process worker, told to end by SIGTERM, kills its flow runs at once: no checkpoint is written, they stay
Running and their leases held until somebody notices. This one, told so, takes no more work, passes SIGTERM on to its
flow runs, and gives them GRACE_SECONDS to save, release their lease and report that they crashed, whereupon the
automation (automations.yaml) queues them for another worker.

Start it so on machines that may be taken away, and have their notice (30 s and more on every cloud) end it:
`docker stop --time 30`; under systemd `KillMode=mixed` and `TimeoutStopSec=30`, since by default systemd signals
Prefect's own process as well. On Kubernetes the signal reaches the flow run itself.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from typing import Any

import psutil

from deployments.local.processes import signal_all, wait_gone
from optune_core.bound import PARENT

GRACE_SECONDS = 28.0
"""From the signal to the end: 26 of them are a stage's."""


def main() -> int:
    """Run a worker until it ends, or until this process is told to end."""
    prefect = [sys.executable, "-m", "prefect", "--no-prompt", "worker", "start", *sys.argv[1:]]
    signal.signal(signal.SIGTERM, _told_to_end)
    signal.signal(signal.SIGINT, _told_to_end)
    # Its own session: Ctrl-C in a terminal would reach it, and through it the flow runs' end.
    worker = subprocess.Popen(
        [sys.executable, "-m", "optune_core.bound", *prefect],
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
    """Let a worker's flow runs save what they have, then end them and it."""
    process = psutil.Process(worker)
    process.suspend()  # takes no more work; and would kill what it has
    flow_runs = process.children()
    signal_all(flow_runs, signal.SIGTERM)
    late = wait_gone(flow_runs, GRACE_SECONDS)
    # Killed, not continued: it would report its runs as crashed once more, when others may have taken them up.
    signal_all([process, *late], signal.SIGKILL)


def _told_to_end(number: int, frame: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise SystemExit


if __name__ == "__main__":
    raise SystemExit(main())
