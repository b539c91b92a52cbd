"""SIGTERM in a stage's process: the machine goes away in half a minute.

By default the stage is left at once (what is not committed is a shard at most). A stage that has more to save defers
that, looks at `requested()` and saves at its next opportunity. Whatever happens, the process ends within GRACE.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from optune_core.errors import Preempted

GRACE_SECONDS = 25.0
"""From the signal to the end: clouds give 30 s."""

EXIT_STATUS = 143
"""128 + SIGTERM."""

_requested = threading.Event()
_deferred = False


def install() -> None:
    """Take SIGTERM over in this process. Ctrl-C is left to the parent, which gets it too and passes it on so."""
    signal.signal(signal.SIGTERM, _on_signal)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def requested() -> bool:
    """Whether this process was asked to end."""
    return _requested.is_set()


@contextmanager
def deferred() -> Iterator[None]:
    """Inside, SIGTERM only makes `requested()` true."""
    global _deferred
    _deferred = True
    try:
        yield
    finally:
        _deferred = False


def leave() -> None:
    """Raise Preempted."""
    raise Preempted("the process was asked to end (SIGTERM); what is committed stays, the same command continues")


def _on_signal(number: int, frame: object) -> None:
    first = not _requested.is_set()
    _requested.set()
    if first:
        last = threading.Timer(GRACE_SECONDS, os._exit, [EXIT_STATUS])
        last.daemon = True
        last.start()
        if not _deferred:
            leave()
