"""SIGTERM in a stage's process: the machine will be gone in half a minute.

By default the stage ends at once and loses at most the shard that is not committed. A stage that has more to save
defers the end, checks `requested()`, and saves at its next opportunity. In any case the process ends within
GRACE_SECONDS.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from optune_core.errors import Preempted

GRACE_SECONDS = 25.0
"""Time in seconds from the signal to the end of the process; clouds give 30 s."""

EXIT_STATUS = 143
"""Exit status of a process that ended on SIGTERM: 128 + 15."""

_requested = threading.Event()
_deferred = False


def install() -> None:
    """Handle SIGTERM in this process. Ctrl-C is ignored: the parent gets it too and sends SIGTERM."""
    signal.signal(signal.SIGTERM, _on_signal)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def requested() -> bool:
    """Return whether this process was asked to end."""
    return _requested.is_set()


@contextmanager
def deferred() -> Iterator[None]:
    """Let SIGTERM only make `requested()` true, within the block."""
    global _deferred
    _deferred = True
    try:
        yield
    finally:
        _deferred = False


def leave() -> None:
    """Raise Preempted, which ends the stage."""
    raise Preempted("the process was asked to end (SIGTERM). Committed work is kept; the same command continues")


def _on_signal(number: int, frame: object) -> None:
    first = not _requested.is_set()
    _requested.set()
    if first:
        last = threading.Timer(GRACE_SECONDS, os._exit, [EXIT_STATUS])
        last.daemon = True
        last.start()
        if not _deferred:
            leave()
