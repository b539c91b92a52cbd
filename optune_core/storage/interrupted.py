"""Runs of a store that were interrupted and should be resumed, found without comparing the clocks of machines."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

from optune_core.parts.names import is_name
from optune_core.storage.lease import BEAT_SECONDS, TTL_SECONDS, LeaseRecord, is_resumable, read_lease
from optune_core.storage.ledger import list_runs
from optune_core.storage.objects import Objects

WATCH_SECONDS = 1.5 * TTL_SECONDS
"""Time for which the leases are watched. A new start that waits for a dead holder's lease takes it within TTL_SECONDS,
so a lease that has not changed after this time has no living start behind it."""

_READERS = 16


def suspects(objects: Objects) -> dict[str, LeaseRecord]:
    """Return the runs that may be resumed by their record. On those in state `working` a process may still work."""
    records = _leases(objects, filter(is_name, list_runs(objects)))
    return {run: record for run, record in records.items() if record is not None and is_resumable(record)}


def unmoved(objects: Objects, suspects: Mapping[str, LeaseRecord]) -> list[str]:
    """Return the suspects whose lease does not change while all are watched: nobody works on these runs.

    Returns as soon as every lease has changed, and after WATCH_SECONDS at the latest.
    """
    left = dict(suspects)
    deadline = time.monotonic() + WATCH_SECONDS
    while left and (remaining := deadline - time.monotonic()) > 0:
        time.sleep(min(BEAT_SECONDS, remaining))
        now = _leases(objects, left)
        left = {run: record for run, record in left.items() if now[run] == record}
    return sorted(left)


def _leases(objects: Objects, runs: Iterable[str]) -> dict[str, LeaseRecord | None]:
    names = list(runs)
    with ThreadPoolExecutor(_READERS) as readers:
        return dict(zip(names, readers.map(lambda run: read_lease(objects, run), names), strict=True))
