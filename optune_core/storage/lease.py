"""The lease of a run, `<root>/runs/<run>/lease.json`: who works on the run, and how its last start ended.

A lease saves work; it decides nothing. If it were ignored, two processes would make the same artifacts, and one
commit of each would be kept. It is held by compare-and-swap, and clocks of different machines are never compared: a
process that finds the lease held watches it, and takes it when it has not changed for TTL_SECONDS of the watching
process's monotonic clock, or at once where the holder was a process of the same machine that has ended.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from optune_core.errors import OptuneError, RunBusy, StoreError, TransientError
from optune_core.parts.names import validate_name
from optune_core.secrets import redact
from optune_core.storage.canonical import canonical_json
from optune_core.storage.objects import Objects

TTL_SECONDS = float(os.environ.get("OPTUNE_LEASE_SECONDS", "45"))
"""Time without a change after which a lease is free. All processes that share a store need the same value."""
BEAT_SECONDS = TTL_SECONDS / 4

MAX_FRUITLESS = 5
"""Starts in a row that committed nothing, after which a run is no longer started automatically."""

State = Literal["working", "interrupted", "stopped", "failed", "finished"]
"""State or end of the last start. A run is resumed after `interrupted`, and after `working` where no process works on
it: a `stopped` run was stopped by the user, and a `failed` one would fail again."""


@dataclass(frozen=True)
class LeaseRecord:
    """Content of `lease.json`."""

    state: State
    holder: str | None
    """Id of the start that holds the lease; None once the start ended."""
    where: str
    """Host and process of the last start, for people."""
    process: str | None
    """Process of the holder, as `_process_identity` names it."""
    starts: int
    beat: int
    fruitless: int
    """Number of starts in a row, the last one included, that have committed nothing."""
    message: str
    config: dict[str, Any] = field(default_factory=dict)
    """Resolved configuration of the last start, target iterations included."""

    @property
    def is_open(self) -> bool:
        """Return whether the last start neither finished, failed nor was stopped by the user."""
        return self.state in ("working", "interrupted")

    def to_bytes(self) -> bytes:
        """Return the record as canonical JSON."""
        return canonical_json(asdict(self))


_RECORD = TypeAdapter(LeaseRecord)


def read_lease(objects: Objects, run: str) -> LeaseRecord | None:
    """Return the lease record of a run, or None if the run was never started or the record cannot be read."""
    return _parse(objects.read(_path(run)))


def is_resumable(record: LeaseRecord | None) -> bool:
    """Return whether a run with this record may be started again automatically, if no process works on it."""
    return record is not None and record.is_open and record.fruitless < MAX_FRUITLESS


class Lease:
    """A held lease, renewed every BEAT_SECONDS by a thread until it is released."""

    def __init__(self, objects: Objects, run: str, record: LeaseRecord, on_lost: Callable[[], None]) -> None:
        self._objects = objects
        self._path = _path(run)
        self._record = record
        self._on_lost = on_lost
        self._lock = threading.Lock()
        self._ended = False
        self._wake = threading.Event()
        self._progressed = False
        self._thread = threading.Thread(target=self._beat, name=f"lease of {run}", daemon=True)
        self._thread.start()

    def progressed(self) -> None:
        """Record, without delay, that this start has committed something and so is not fruitless."""
        if not self._progressed:
            self._progressed = True
            self._wake.set()

    def release(self, state: State, message: str = "") -> None:
        """Record how the start ended, and give up the lease. A lease that was lost is left to its new holder."""
        self._stop_beating()
        self._move(state=state, message=message, holder=None, process=None)

    def _stop_beating(self) -> None:
        self._ended = True
        self._wake.set()
        self._thread.join()

    def _beat(self) -> None:
        while True:
            self._wake.wait(BEAT_SECONDS)
            self._wake.clear()
            if self._ended:
                return
            try:
                if not self._move():
                    self._on_lost()
                    return
            except (StoreError, TransientError):
                continue  # while the store cannot be reached, no other process can take the lease either

    def _move(self, **changes: Any) -> bool:
        with self._lock:
            fruitless = 0 if self._progressed else self._record.fruitless
            moved = replace(self._record, beat=self._record.beat + 1, fruitless=fruitless, **changes)
            if not self._objects.swap(self._path, self._record.to_bytes(), moved.to_bytes()):
                # Perhaps an earlier write of this process was stored and only its answer was lost.
                current = _parse(self._objects.read(self._path))
                if current is None or current.holder != self._record.holder:
                    return False
                moved = replace(moved, beat=current.beat + 1)
                if not self._objects.swap(self._path, current.to_bytes(), moved.to_bytes()):
                    return False
            self._record = moved
            return True


def take(
    objects: Objects,
    run: str,
    config: Mapping[str, Any],
    *,
    unasked: bool = False,
    on_lost: Callable[[], None] = lambda: None,
    log: Callable[[str], None] = lambda message: None,
) -> Lease:
    """Take the lease of a run. Waits up to TTL_SECONDS where it is not known whether the holder is alive.

    Args:
        objects: the store.
        run: name of the run.
        config: resolved configuration of this start.
        unasked: True for a start that no person asked for, such as an automation's.
        on_lost: called from another thread when another process has taken the lease.
        log: called with a message before waiting.

    Raises:
        RunBusy: another process works on the run.
        OptuneError: the start is unasked, and the last MAX_FRUITLESS starts of the run committed nothing.
        StoreError, TransientError: the store refused, or could not be reached.
    """
    body = objects.read(_path(run))
    before = _parse(body)
    if before is not None and before.holder is not None and not is_gone(before):
        log(
            f"run {run!r} was last worked on by {before.where}: "
            f"waiting up to {TTL_SECONDS:.0f} s to see whether it is still alive"
        )
        body = _watch(objects, run, before)
        before = _parse(body)
    if unasked and before is not None and before.fruitless >= MAX_FRUITLESS:
        raise OptuneError(
            f"run {run!r}: the last {before.fruitless} starts committed nothing (the last of them ended with: "
            f"{before.message or 'killed'}), so it is not started automatically any more. "
            "Fix the cause, then start the run once by hand"
        )
    record = LeaseRecord(
        state="working",
        holder=uuid.uuid4().hex,
        where=f"{socket.gethostname()}, process {os.getpid()}",
        process=_process_identity(os.getpid()),
        starts=before.starts + 1 if before else 1,
        beat=0,
        fruitless=before.fruitless + 1 if before else 1,
        message="",
        config=dict(config),
    )
    if not objects.swap(_path(run), body, record.to_bytes()):
        other = read_lease(objects, run)
        raise RunBusy(_busy(run, other.where if other else "another process"))
    return Lease(objects, run, record, on_lost)


@contextmanager
def hold(
    objects: Objects,
    run: str,
    config: Mapping[str, Any],
    *,
    unasked: bool = False,
    on_lost: Callable[[], None] = lambda: None,
    log: Callable[[str], None] = lambda message: None,
) -> Iterator[Lease]:
    """Hold the lease of a run for a block, and record how the block ended. Arguments and errors are those of `take`."""
    lease = take(objects, run, config, unasked=unasked, on_lost=on_lost, log=log)
    try:
        yield lease
    except KeyboardInterrupt:
        _release(lease, "stopped", "stopped by the user")
        raise
    except OptuneError as error:
        _release(lease, "failed", f"{type(error).__name__}: {error}")
        raise
    except BaseException as error:  # a failure outside of the run, or a signal to end this process
        _release(lease, "interrupted", f"{type(error).__name__}: {error}")
        raise
    _release(lease, "finished", "")


def stop(objects: Objects, run: str) -> None:
    """Record that the user cancelled a run whose process has ended, so that the run is not resumed."""
    while (body := objects.read(_path(run))) is not None and (record := _parse(body)) is not None:
        if not record.is_open:
            return
        stopped = replace(record, state="stopped", holder=None, process=None, message="cancelled", beat=record.beat + 1)
        if objects.swap(_path(run), body, stopped.to_bytes()):
            return


def _release(lease: Lease, state: State, message: str) -> None:
    try:
        lease.release(state, redact(message)[:2000])
    except (StoreError, TransientError):
        return  # without renewals it becomes free after TTL_SECONDS


def _watch(objects: Objects, run: str, held: LeaseRecord) -> bytes | None:
    """Return the stored lease once it was given up or has not changed for TTL_SECONDS. Raises RunBusy if it changes."""
    deadline = time.monotonic() + TTL_SECONDS
    while True:
        time.sleep(min(1.0, TTL_SECONDS / 10))
        overdue = time.monotonic() >= deadline  # computed before reading, in case this process was paused in between
        body = objects.read(_path(run))
        now = _parse(body)
        if now is None or now.holder is None:
            return body
        if (now.holder, now.beat) != (held.holder, held.beat):
            raise RunBusy(_busy(run, now.where))
        if overdue:
            return body


def _busy(run: str, where: str) -> str:
    return (
        f"run {run!r} is being worked on by {where}, and one process at a time works on a run. "
        f"Follow it with `optune status {run}`. If that process dies, the same command takes over the run "
        f"{TTL_SECONDS:.0f} s later"
    )


def _parse(body: bytes | None) -> LeaseRecord | None:
    if body is None:
        return None
    try:
        return _RECORD.validate_json(body)
    except ValueError:
        return None  # a lease decides nothing, so one that cannot be read may be replaced


def _path(run: str) -> str:
    try:
        return f"runs/{validate_name(run)}/lease.json"
    except ValueError as error:
        raise StoreError(f"run {error}") from error


def is_gone(record: LeaseRecord) -> bool:
    """Return whether the holder was a process of this machine and has ended."""
    here = _process_identity(os.getpid())
    if record.process is None or here is None:
        return False
    machine, _, process = record.process.rpartition("/")
    if machine != here.rpartition("/")[0]:
        return False
    return _process_identity(int(process.partition("-")[0])) != record.process


def _process_identity(pid: int) -> str | None:
    """Name a process by boot, process namespace, pid and start time; None if it has ended, or without Linux's /proc."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    state, birth = stat[0], stat[19]
    return None if state in "ZX" else f"{boot}/{namespace}/{pid}-{birth}"
