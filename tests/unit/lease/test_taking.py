"""The lease of a run is held by one worker at a time."""

from __future__ import annotations

import json
import os
import threading
from types import SimpleNamespace

import pytest

from optune_core.errors import RunBusy, StoreError
from optune_core.storage import lease as lease_module
from optune_core.storage.lease import Lease, LeaseRecord, is_resumable, read_lease, take
from optune_core.storage.local import LocalObjects
from tests.unit.lease.holders import PATH, TTL, put, record
from tests.waiting import PATIENCE, until


def test_a_held_lease_records_its_process_and_its_configuration(objects: LocalObjects) -> None:
    lease = take(objects, "run", {"rho": 0.5})
    held = record(objects)
    assert (held.state, held.starts, held.config) == ("working", 1, {"rho": 0.5})
    assert f"process {os.getpid()}" in held.where
    lease.release("finished")


@pytest.mark.usefixtures("long_lease")
def test_a_live_lease_refuses_a_second_runner_and_names_the_first(objects: LocalObjects) -> None:
    lost: list[str] = []
    lease = take(objects, "run", {}, on_lost=lambda: lost.append("lost"))
    with pytest.raises(RunBusy, match=rf"'run' is being worked on .*process {os.getpid()}.*optune status run"):
        take(objects, "run", {})
    lease.release("finished")
    assert lost == []
    assert record(objects).state == "finished"


def test_a_held_lease_beats_and_a_released_one_does_not(objects: LocalObjects) -> None:
    lease = take(objects, "run", {})
    until(lambda: record(objects).beat >= 2)
    lease.release("finished")
    assert not lease._thread.is_alive()


def test_a_released_lease_is_taken_without_waiting(objects: LocalObjects, monkeypatch: pytest.MonkeyPatch) -> None:
    take(objects, "run", {}).release("interrupted")
    monkeypatch.setattr(lease_module, "_watch", None)  # nobody to watch
    second = take(objects, "run", {})
    assert record(objects).starts == 2
    second.release("finished")


def test_leases_of_two_runs_are_independent(objects: LocalObjects) -> None:
    one, two = take(objects, "one", {}), take(objects, "two", {})
    one.release("finished")
    two.release("failed")
    assert [read_lease(objects, run).state for run in ("one", "two")] == ["finished", "failed"]  # type: ignore[union-attr]


def race(objects: LocalObjects) -> None:
    """Let eight runners take the lease at the same time; check that exactly one gets it and keeps it."""
    barrier = threading.Barrier(8)
    taken: list[Lease] = []
    refused: list[RunBusy] = []
    lost: list[str] = []

    def runner() -> None:
        barrier.wait()
        try:
            taken.append(take(objects, "run", {}, on_lost=lambda: lost.append("lost")))
        except RunBusy as busy:
            refused.append(busy)

    threads = [threading.Thread(target=runner) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(taken), len(refused), lost) == (1, 7, [])
    taken[0].release("finished")


@pytest.mark.usefixtures("long_lease")
def test_exactly_one_of_racing_runners_takes_a_free_lease(objects: LocalObjects) -> None:
    race(objects)


def test_exactly_one_of_racing_runners_takes_over_from_a_dead_holder(
    objects: LocalObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time to live ends when all of them watch the dead one: none is so late that it watches the winner."""
    put(objects)
    clock = 0.0

    def pass_time() -> None:
        nonlocal clock
        clock += TTL

    all_watch = threading.Barrier(8, action=pass_time)
    together = SimpleNamespace(monotonic=lambda: clock, sleep=lambda seconds: all_watch.wait(PATIENCE))
    monkeypatch.setattr(lease_module, "time", together)
    race(objects)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{torn",
        b"null",
        b"[]",
        b"\xff\xfe",
        b'{"state": "working"}',
        json.dumps(
            {**json.loads(LeaseRecord("working", "x", "", None, 1, 1, 1, "").to_bytes()), "starts": "x"}
        ).encode(),
        json.dumps(
            {**json.loads(LeaseRecord("working", "x", "", None, 1, 1, 1, "").to_bytes()), "state": "?"}
        ).encode(),
    ],
)
def test_a_broken_record_counts_as_no_record(objects: LocalObjects, body: bytes) -> None:
    objects.create(PATH, body)
    assert read_lease(objects, "run") is None
    assert not is_resumable(read_lease(objects, "run"))
    lease = take(objects, "run", {})
    assert record(objects).starts == 1
    lease.release("finished")


@pytest.mark.parametrize("run", ["../x", "a/b", ".hidden", ""])
def test_a_run_name_cannot_leave_its_folder(objects: LocalObjects, run: str) -> None:
    with pytest.raises(StoreError, match="not a valid name"):
        take(objects, run, {})
