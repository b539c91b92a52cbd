"""`lease.take` under interleavings, crashes and lost answers that hypothesis chooses."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optune_core.errors import RunBusy, TransientError
from optune_core.storage import lease as lease_module
from optune_core.storage.lease import Lease, read_lease, take
from optune_core.storage.local import LocalObjects
from optune_core.storage.objects import Objects
from tests.faults.protocol.memory import Memory, OverwritingSwap
from tests.faults.protocol.turns import Runner, Turn, clocks, play, schedules

pytestmark = pytest.mark.faults

TTL = 4.0


@dataclass
class Record:
    """The holders of the lease in order, and checks that none returns."""

    objects: Objects
    holders: list[str] = field(default_factory=list)
    leases: list[Lease] = field(default_factory=list)

    def look(self, runners: list[Runner]) -> None:
        lease_record = read_lease(self.objects, "run")
        holder = lease_record.holder if lease_record else None
        if holder is not None and holder != (self.holders[-1] if self.holders else None):
            assert holder not in self.holders, "a lease that had been taken over is held again"
            self.holders.append(holder)
        for runner in runners:
            if runner.error is not None:
                raise runner.error

    def is_held_by(self, lease: Lease) -> bool:
        lease_record = read_lease(self.objects, "run")
        return lease_record is not None and lease_record.holder == lease._record.holder


def worker(record: Record, beats: int) -> Callable[[Runner], None]:
    def program(runner: Runner) -> None:
        for _ in range(2):
            try:
                lease = take(runner.objects, "run", {})  # type: ignore[arg-type]
            except (RunBusy, TransientError):
                continue
            record.leases.append(lease)
            assert record.is_held_by(lease), "reported as held, and is not"
            for _ in range(beats):
                try:
                    if not lease._move():
                        assert not record.is_held_by(lease), "reported as lost, and is held"
                        return
                    assert record.is_held_by(lease), "reported as held, and is not"
                except TransientError:
                    pass  # the thread that beats goes on as well
            try:
                lease.release("finished")
            except TransientError:
                return
            lease_record = read_lease(record.objects, "run")
            assert lease_record is not None
            assert lease_record.holder is not None or lease_record.state == "finished"
            return

    return program


def play_leases(objects: Objects, folder: Path, schedule: list[Turn], count: int, beats: int) -> Record:
    record = Record(objects)

    def sleep(seconds: float) -> None:
        clocks[threading.get_ident()].clock += TTL / 2  # others may do anything meanwhile: the next look waits its turn

    fake = SimpleNamespace(sleep=sleep, monotonic=lambda: clocks[threading.get_ident()].clock)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lease_module, "time", fake)
        patch.setattr(lease_module, "TTL_SECONDS", TTL)
        patch.setattr(lease_module, "BEAT_SECONDS", 3600)  # the programs beat
        runners = [Runner(n, worker(record, beats), objects, folder) for n in range(count)]
        try:
            play(runners, schedule, lambda: record.look(runners))
        finally:
            for lease in record.leases:
                lease._stop_beating()
    believers = [lease for lease in record.leases if lease._record.holder is not None]
    holding = [lease for lease in believers if lease_of(objects, lease)._move()]
    assert len(holding) <= 1, "two believe that they hold the lease, and are confirmed in it"
    assert all(record.is_held_by(lease) for lease in holding)
    return record


def lease_of(objects: Objects, lease: Lease) -> Lease:
    lease._objects = objects  # the runner whose turns it waited for is gone
    return lease


lease_cases = given(schedule=schedules, count=st.integers(2, 4), beats=st.integers(0, 4))


@settings(max_examples=120)
@lease_cases
def test_one_runner_at_a_time_holds_the_lease_under_any_interleaving(ram: Path, **case: Any) -> None:
    play_leases(Memory(), ram, **case)


@settings(max_examples=40)
@lease_cases
def test_one_runner_at_a_time_holds_the_lease_on_a_disk(ram: Path, **case: Any) -> None:
    with tempfile.TemporaryDirectory(dir=ram) as folder:
        play_leases(LocalObjects(Path(folder)), ram, **case)


@pytest.mark.long
@settings(max_examples=5000)
@lease_cases
def test_one_runner_at_a_time_holds_the_lease_through_thousands_of_interleavings(ram: Path, **case: Any) -> None:
    play_leases(Memory(), ram, **case)


def test_the_checker_catches_a_lease_in_a_store_that_overwrites(ram: Path) -> None:
    schedule: list[Turn] = [(n % 2, "fine") for n in range(12)]
    with pytest.raises(AssertionError, match=r"held again|and is not|and is held"):
        play_leases(OverwritingSwap(), ram, schedule, 2, 4)
