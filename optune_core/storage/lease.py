"""Who works on a run, and how its last start ended: `<root>/runs/<run>/lease.json`, the one record that changes.

A lease saves work; it decides nothing. Were it ignored, two runners would make the same artifacts and one commit of
each would stand. It is held by compare-and-swap, and nobody compares clocks of different machines: who finds it
held watches it, and takes it when it has not moved for TTL_SECONDS of its own monotonic clock, or at once where the
holder was a process of this very machine and is gone.
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
"""A lease that has not moved for so long is free. The same for all who share a store."""
BEAT_SECONDS = TTL_SECONDS / 4

MAX_FRUITLESS = 5
"""Starts in a row that committed nothing, after which a run is not started again without being asked for."""

State = Literal["working", "interrupted", "stopped", "failed", "finished"]
"""How the last start stands or ended. Only `interrupted`, and `working` with nobody at it, is to be resumed:
a `stopped` run was stopped by its user, a `failed` one would fail again."""


@dataclass(frozen=True)
class LeaseRecord:
    """What `lease.json` holds."""

    state: State
    holder: str | None
    """Unique to a start; None once it ended."""
    where: str
    """Host and process, for people."""
    process: str | None
    """The holder's process, as `_process_identity` names it."""
    starts: int
    beat: int
    fruitless: int
    """Starts in a row, up to this one, that committed nothing yet."""
    message: str
    config: dict[str, Any] = field(default_factory=dict)
    """The resolved configuration of the last start, target iterations included."""

    @property
    def is_open(self) -> bool:
        """Whether the last start neither came to its end nor was given up."""
        return self.state in ("working", "interrupted")

    def to_bytes(self) -> bytes:
        return canonical_json(asdict(self))


_RECORD = TypeAdapter(LeaseRecord)


def read_lease(objects: Objects, run: str) -> LeaseRecord | None:
    """The lease record of a run, or None if it was never started (or the record is not one)."""
    return _parse(objects.read(_path(run)))


def is_resumable(record: LeaseRecord | None) -> bool:
    """Whether the run was interrupted and may be started again unasked, if nobody works on it."""
    return record is not None and record.is_open and record.fruitless < MAX_FRUITLESS


class Lease:
    """A held lease: beats in a thread until it is released."""

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
        """Something was committed in this start: it is not fruitless, which is recorded at once."""
        if not self._progressed:
            self._progressed = True
            self._wake.set()

    def release(self, state: State, message: str = "") -> None:
        """End the start. A lease that was lost meanwhile is left to its new holder."""
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
                continue  # the store is away: others cannot take the lease either

    def _move(self, **changes: Any) -> bool:
        with self._lock:
            fruitless = 0 if self._progressed else self._record.fruitless
            moved = replace(self._record, beat=self._record.beat + 1, fruitless=fruitless, **changes)
            if not self._objects.swap(self._path, self._record.to_bytes(), moved.to_bytes()):
                # Perhaps an earlier move of ours stands, whose answer was lost for good.
                standing = _parse(self._objects.read(self._path))
                if standing is None or standing.holder != self._record.holder:
                    return False
                moved = replace(moved, beat=standing.beat + 1)
                if not self._objects.swap(self._path, standing.to_bytes(), moved.to_bytes()):
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
    say: Callable[[str], None] = lambda message: None,
) -> Lease:
    """Take the lease of a run; waits up to TTL_SECONDS where its holder may be dead.

    Args:
        config: the resolved configuration of this start.
        unasked: no person asked for this start.
        on_lost: called, from another thread, when the lease was taken over.
        say: told why it has to wait.

    Raises:
        RunBusy: somebody works on the run.
        OptuneError: an unasked start of a run whose last MAX_FRUITLESS starts committed nothing.
        StoreError, TransientError: the store refused, or could not be reached.
    """
    body = objects.read(_path(run))
    before = _parse(body)
    if before is not None and before.holder is not None and not is_gone(before):
        say(f"run {run!r} was last worked on by {before.where}: seeing for {TTL_SECONDS:.0f} s whether it still is")
        body = _watch(objects, run, before)
        before = _parse(body)
    if unasked and before is not None and before.fruitless >= MAX_FRUITLESS:
        raise OptuneError(
            f"run {run!r}: {before.fruitless} starts in a row committed nothing (last: {before.message or 'killed'}). "
            "It is not started again by itself: mend the cause, then start it once by hand"
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
    say: Callable[[str], None] = lambda message: None,
) -> Iterator[Lease]:
    """Hold the lease of a run, and leave a record of how the block ended. Raises as `take`."""
    lease = take(objects, run, config, unasked=unasked, on_lost=on_lost, say=say)
    try:
        yield lease
    except KeyboardInterrupt:
        _release(lease, "stopped", "stopped by its user")
        raise
    except OptuneError as error:
        _release(lease, "failed", f"{type(error).__name__}: {error}")
        raise
    except BaseException as error:  # something outside failed, or this process was told to end
        _release(lease, "interrupted", f"{type(error).__name__}: {error}")
        raise
    _release(lease, "finished", "")


def stop(objects: Objects, run: str) -> None:
    """Note that the user cancelled a run whose process is gone: it is not to be resumed."""
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
        return  # it runs out by itself


def _watch(objects: Objects, run: str, held: LeaseRecord) -> bytes | None:
    """Return what stands when the lease was let go, or has not moved for TTL_SECONDS. Raises RunBusy if it moves."""
    deadline = time.monotonic() + TTL_SECONDS
    while True:
        time.sleep(min(1.0, TTL_SECONDS / 10))
        overdue = time.monotonic() >= deadline  # before the look: it may be this process that was paused
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
        f"run {run!r} is being worked on ({where}). Leave it to that, and look with `optune status {run}`; "
        f"should it die, the same command takes over {TTL_SECONDS:.0f} s later"
    )


def _parse(body: bytes | None) -> LeaseRecord | None:
    if body is None:
        return None
    try:
        return _RECORD.validate_json(body)
    except ValueError:
        return None  # a lease decides nothing: a broken one is as good as none


def _path(run: str) -> str:
    try:
        return f"runs/{validate_name(run)}/lease.json"
    except ValueError as error:
        raise StoreError(f"run {error}") from error


def is_gone(record: LeaseRecord) -> bool:
    """Whether the holder was a process of this machine, and has ended."""
    here = _process_identity(os.getpid())
    if record.process is None or here is None:
        return False
    machine, _, process = record.process.rpartition("/")
    if machine != here.rpartition("/")[0]:
        return False
    return _process_identity(int(process.partition("-")[0])) != record.process


def _process_identity(pid: int) -> str | None:
    """Boot and process namespace, then pid and time of birth; None where Linux does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    state, birth = stat[0], stat[19]
    return None if state in "ZX" else f"{boot}/{namespace}/{pid}-{birth}"
