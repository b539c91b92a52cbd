"""Handling of SIGINT and SIGTERM: the stage at work saves what it can, and the process ends within a bounded time."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time

import typer

INTERRUPTED = 130
_TERMINATED = 143
_GRACE_SECONDS = 28.0
"""Longest time from the first signal to the end of the process; clouds give 30 s before they remove a machine."""
_PREFECT_SECONDS = 5.0
"""Part of this time that Prefect gets after the last stage has ended."""


def interrupt(number: int, frame: object) -> None:
    """End the process soon: the stage at work gets time to save its work, and a second Ctrl-C ends it at once.

    Prefect gets a few seconds to record the end and no more: its temporary server may have got the same signal, and
    Prefect would then try to reach it for minutes. (Inside a flow run Prefect handles SIGTERM itself.)

    Raises:
        KeyboardInterrupt: the signal is SIGINT.
        SystemExit: the signal is another one.
    """
    by_user = number == signal.SIGINT
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, lambda number, frame: _leave(by_user))
    typer.secho(
        "\nInterrupted: saving (press Ctrl-C again to exit at once). The same command continues the run.", err=True
    )
    threading.Thread(target=_exit_in_time, args=(by_user,), daemon=True).start()
    raise KeyboardInterrupt if by_user else SystemExit(_TERMINATED)


def _exit_in_time(by_user: bool) -> None:
    from optune_core.process.children import no_child

    deadline = time.monotonic() + _GRACE_SECONDS
    no_child.wait(_GRACE_SECONDS - _PREFECT_SECONDS)
    time.sleep(max(0.0, min(_PREFECT_SECONDS, deadline - time.monotonic())))
    _leave(by_user)


def _leave(by_user: bool) -> None:
    """Kill the child processes, which are the stage and the temporary server, and exit at once."""
    import psutil

    for child in psutil.Process().children(recursive=True):
        child.kill()
    if "tasks.support.lease" in sys.modules:
        from tasks.support.lease import let_go

        with contextlib.suppress(Exception):
            let_go("stopped" if by_user else "interrupted", "stopped by the user" if by_user else "terminated")
    os._exit(INTERRUPTED if by_user else _TERMINATED)
