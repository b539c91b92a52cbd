"""The lease of a run is taken from a holder that is dead or paused, and from no other."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from optune_core.errors import RunBusy, TransientError
from optune_core.storage import lease as lease_module
from optune_core.storage.lease import take
from optune_core.storage.local import LocalObjects
from tests.unit.lease.holders import PATH, TTL, Runner, put, record
from tests.waiting import PATIENCE, until


def state_of(pid: int) -> str:
    """Return the state of a process as Linux names it: T is stopped, Z is dead and not yet waited for."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def stop_between_beats(objects: LocalObjects, runner: Runner) -> None:
    """Stop the runner, but not while it holds the store's lock for a beat: everybody would wait for that."""
    while True:
        os.kill(runner.process.pid, signal.SIGSTOP)
        until(lambda: state_of(runner.process.pid) == "T")
        with (objects.root / ".lock").open("a") as lock, contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        os.kill(runner.process.pid, signal.SIGCONT)


def test_dead_lease_holder_is_replaced_at_once(
    objects: LocalObjects, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert record(objects).config == {"who": "child"}
    os.kill(runner.process.pid, signal.SIGKILL)
    runner.process.wait()
    monkeypatch.setattr(lease_module, "_watch", None)  # watching would be waiting
    lease = take(objects, "run", {})
    assert record(objects).starts == 2
    lease.release("finished")


def test_a_zombie_lease_holder_is_replaced_at_once(
    objects: LocalObjects, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.kill(runner.process.pid, signal.SIGKILL)
    until(lambda: state_of(runner.process.pid) == "Z")
    monkeypatch.setattr(lease_module, "_watch", None)
    take(objects, "run", {}).release("finished")


def test_a_process_that_reuses_the_pid_of_a_dead_holder_is_not_taken_for_it(
    objects: LocalObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = lease_module._process_identity(os.getpid())
    assert mine is not None
    put(objects, process=f"{mine.rpartition('-')[0]}-1")  # this process's number, born just after the machine
    monkeypatch.setattr(lease_module, "_watch", None)
    take(objects, "run", {}).release("finished")


@pytest.mark.parametrize("process", ["other-boot/pid:[1]/7-1", None])
def test_a_holder_on_another_machine_is_replaced_only_after_the_time_to_live_without_a_beat(
    objects: LocalObjects, process: str | None
) -> None:
    put(objects, process=process)
    started = time.monotonic()
    lease = take(objects, "run", {})
    assert time.monotonic() - started >= TTL
    assert (record(objects).starts, record(objects).state) == (2, "working")
    lease.release("finished")


@pytest.mark.usefixtures("long_lease")
def test_a_holder_on_another_machine_that_beats_once_keeps_its_lease(
    objects: LocalObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = put(objects)
    looks = 0
    read = objects.read

    def moves_meanwhile(path: str) -> bytes | None:
        nonlocal looks
        looks += 1
        if looks == 3:
            objects.swap(path, held.to_bytes(), replace(held, beat=held.beat + 1).to_bytes())
        return read(path)

    monkeypatch.setattr(objects, "read", moves_meanwhile)
    with pytest.raises(RunBusy, match="elsewhere, process 7"):
        take(objects, "run", {})
    assert record(objects).holder == "them"


def test_a_watch_ends_as_soon_as_the_holder_releases_its_lease(
    objects: LocalObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_module, "TTL_SECONDS", 600.0)
    held = put(objects)
    looks: list[bool] = []

    def let_go(seconds: float) -> None:
        looks.append(objects.swap(PATH, held.to_bytes(), replace(held, holder=None).to_bytes()))

    monkeypatch.setattr(time, "sleep", let_go)
    take(objects, "run", {}).release("finished")
    assert looks == [True], "it went on watching"


def test_a_watcher_that_was_paused_leaves_a_live_holder_its_lease(
    objects: LocalObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watcher stops for longer than the time to live, while the holder goes on beating."""
    held = put(objects)
    clock = 0.0

    def paused(seconds: float) -> None:
        nonlocal clock
        clock += 10 * TTL
        objects.swap(PATH, held.to_bytes(), replace(held, beat=held.beat + 40).to_bytes())

    monkeypatch.setattr(time, "monotonic", lambda: clock)
    monkeypatch.setattr(time, "sleep", paused)
    with pytest.raises(RunBusy, match="elsewhere"):
        take(objects, "run", {})
    monkeypatch.undo()
    assert record(objects).holder == "them"


def test_a_holder_that_beats_just_before_it_is_replaced_keeps_its_lease(
    objects: LocalObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = put(objects)
    swap = objects.swap

    def moved_first(path: str, expected: bytes | None, body: bytes) -> bool:
        swap(path, held.to_bytes(), replace(held, beat=held.beat + 1).to_bytes())
        return swap(path, expected, body)

    monkeypatch.setattr(objects, "swap", moved_first)
    with pytest.raises(RunBusy, match="elsewhere, process 7"):
        take(objects, "run", {})
    assert record(objects).holder == "them"


def test_a_holder_that_beats_right_after_the_last_look_keeps_its_lease(
    objects: LocalObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = put(objects)
    clock = 0.0
    read = objects.read

    def pause(seconds: float) -> None:
        nonlocal clock
        clock += TTL

    def moves_after_the_look(path: str) -> bytes | None:
        body = read(path)
        if clock >= TTL:
            objects.read = read  # type: ignore[method-assign]
            assert objects.swap(PATH, held.to_bytes(), replace(held, beat=held.beat + 1).to_bytes())
        return body

    monkeypatch.setattr(time, "monotonic", lambda: clock)
    monkeypatch.setattr(time, "sleep", pause)
    monkeypatch.setattr(objects, "read", moves_after_the_look)
    with pytest.raises(RunBusy, match="elsewhere, process 7"):
        take(objects, "run", {})
    assert record(objects).holder == "them"


def test_a_paused_holder_loses_its_lease_learns_it_and_does_not_disturb_the_new_one(
    objects: LocalObjects, runner: Runner
) -> None:
    stop_between_beats(objects, runner)
    lease = take(objects, "run", {"who": "second"})  # waits until the time to live is over: it is not dead
    os.kill(runner.process.pid, signal.SIGCONT)
    assert runner.line() == "lost"
    assert record(objects).config == {"who": "second"}
    runner.let_go()
    assert runner.line() == "released"
    assert (record(objects).config, record(objects).state) == ({"who": "second"}, "working")
    assert lease._move(), "the new holder was disturbed"
    lease.release("finished")


def test_a_holder_keeps_its_lease_while_the_store_is_unreachable(
    objects: LocalObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: list[str] = []
    away = threading.Event()
    failed = threading.Event()
    swap = objects.swap

    def sometimes(path: str, expected: bytes | None, body: bytes) -> bool:
        if away.is_set():
            failed.set()
            raise TransientError("away")
        return swap(path, expected, body)

    monkeypatch.setattr(objects, "swap", sometimes)
    lease = take(objects, "run", {}, on_lost=lambda: lost.append("lost"))
    away.set()
    assert failed.wait(PATIENCE)
    away.clear()
    beat = record(objects).beat
    until(lambda: record(objects).beat > beat)
    lease.release("finished")
    assert lost == []


@pytest.mark.usefixtures("no_beat")
def test_a_holder_recognizes_its_own_beat_whose_answer_was_lost(
    objects: LocalObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: list[str] = []
    lease = take(objects, "run", {}, on_lost=lambda: lost.append("lost"))
    swap = objects.swap

    def deaf(path: str, expected: bytes | None, body: bytes) -> bool:
        swap(path, expected, body)
        raise TransientError("no answer")

    with monkeypatch.context() as patch:
        patch.setattr(objects, "swap", deaf)
        with pytest.raises(TransientError):
            lease._move()
    lease.progressed()  # so that the next move is another one
    assert lease._move()
    lease.release("finished")
    assert (record(objects).state, record(objects).fruitless) == ("finished", 0)


@pytest.mark.usefixtures("no_beat")
def test_a_holder_whose_record_was_broken_has_lost_its_lease(objects: LocalObjects) -> None:
    lease = take(objects, "run", {})
    assert objects.swap(PATH, objects.read(PATH), b"{torn")
    assert not lease._move()
