"""Signals, and the end of the process: what can be saved is saved, and nothing keeps a machine that goes away."""

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
"""From the first signal to the end, whatever happens: clouds give 30 s."""
_PREFECT_SECONDS = 5.0
"""What Prefect is given of it after the last stage has ended."""


def interrupt(number: int, frame: object) -> None:
    """End soon: the stage at work is given time to save what it has, and a second Ctrl-C cuts that short.

    Prefect is given a moment more to record the end: its temporary server may have got the same signal, and it would
    then try to reach it for minutes. (SIGTERM comes here only outside of a flow run: inside it is Prefect's.)
    """
    by_user = number == signal.SIGINT
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, lambda number, frame: _leave(by_user))
    typer.secho(
        "\nInterrupted: saving (Ctrl-C again: leave at once). The same command continues where it stopped.", err=True
    )
    threading.Thread(target=_see_to_the_end, args=(by_user,), daemon=True).start()
    raise KeyboardInterrupt if by_user else SystemExit(_TERMINATED)


def _see_to_the_end(by_user: bool) -> None:
    from optune_core.process.children import no_child

    deadline = time.monotonic() + _GRACE_SECONDS
    no_child.wait(_GRACE_SECONDS - _PREFECT_SECONDS)
    time.sleep(max(0.0, min(_PREFECT_SECONDS, deadline - time.monotonic())))
    _leave(by_user)


def _leave(by_user: bool) -> None:
    """Exit at once, and take the stage and the temporary server along."""
    import psutil

    for child in psutil.Process().children(recursive=True):
        child.kill()
    if "tasks.support.lease" in sys.modules:
        from tasks.support.lease import let_go

        with contextlib.suppress(Exception):
            let_go("stopped" if by_user else "interrupted", "stopped by the user" if by_user else "terminated")
    os._exit(INTERRUPTED if by_user else _TERMINATED)
