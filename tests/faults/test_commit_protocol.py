"""The commit protocol and the lease under interleavings, crashes and lost answers that hypothesis chooses.

The real `ArtifactStore.commit`, `find`, `fetch` and `lease.take` run in threads, of which one at a time makes one
storage operation; a schedule says whose turn it is and what befalls the operation. What stands in the store is
looked at after every single one.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optune_core.errors import CorruptArtifact, RunBusy, StoreError, TransientError
from optune_core.storage import ArtifactStore, Manifest, Work
from optune_core.storage import artifacts as artifacts_module
from optune_core.storage import lease as lease_module
from optune_core.storage.lease import Lease, read_lease, take
from optune_core.storage.objects import Entry, LocalObjects, Objects

pytestmark = pytest.mark.faults

WORK = Work("demo", 1, {"rho": 0.5})
BASE = f"artifacts/demo/{WORK.key}"
MANIFEST = f"{BASE}/manifest.json"
FILES = ("a.bin", "sub/b.bin")

Fate = Literal["fine", "lost answer", "dies before", "dies after"]
Turn = tuple[int, Fate]


class Memory:
    """Objects in a dictionary: every operation is atomic, as the protocol may believe."""

    url = "memory"

    def __init__(self) -> None:
        self.bodies: dict[str, bytes] = {}

    def require(self) -> None:
        pass

    def create(self, path: str, body: bytes) -> bytes:
        return self.bodies.setdefault(path, body)

    def swap(self, path: str, expected: bytes | None, body: bytes) -> bool:
        if self.bodies.get(path) != expected:
            return False
        self.bodies[path] = body
        return True

    def refuses_stale_swap(self, path: str) -> bool:
        return True

    def read(self, path: str) -> bytes | None:
        return self.bodies.get(path)

    def upload(self, file: Path, path: str) -> None:
        self.bodies[path] = file.read_bytes()

    def download(self, path: str, file: Path) -> None:
        if path not in self.bodies:
            raise StoreError(f"{path} is not there") from FileNotFoundError(path)
        file.write_bytes(self.bodies[path])

    def names(self, prefix: str) -> list[str]:
        return sorted(
            {path.removeprefix(f"{prefix}/").split("/")[0] for path in self.bodies if path.startswith(prefix)}
        )

    def walk(self, prefix: str) -> Iterator[Entry]:
        return iter([Entry(path, len(body), 0.0) for path, body in self.bodies.items() if path.startswith(prefix)])

    def now(self) -> float:
        return 0.0

    def delete(self, path: str) -> None:
        self.bodies.pop(path, None)

    def local_folder(self, path: str) -> Path | None:
        return None


class Crash(BaseException):
    """The process is no more."""


class Runner:
    """A program in a thread that stops before every storage operation until it is its turn."""

    def __init__(self, number: int, program: Callable[[Runner], None], objects: Objects, folder: Path) -> None:
        self.number = number
        self.objects = Stepped(objects, self)
        self.folder = folder
        self.told: list[Manifest] = []
        self.clock = 0.0
        self.done = False
        self.crashed = False
        self.error: BaseException | None = None
        self._program = program
        self._fate: Fate = "fine"
        self._turn = threading.Semaphore(0)
        self._stopped = threading.Semaphore(0)
        self.thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self.thread.start()
        self._wait()

    def step(self, fate: Fate) -> None:
        """Let the next operation happen, and the program go on to the one after it."""
        self._fate = fate
        self._turn.release()
        self._wait()

    def operate(self, operation: Callable[[], Any]) -> Any:
        if self.crashed:
            raise Crash
        self._stopped.release()
        self._turn.acquire()
        fate = self._fate
        if fate == "dies before":
            self.crashed = True
            raise Crash
        result = operation()
        if fate == "dies after":
            self.crashed = True
            raise Crash
        if fate == "lost answer":
            raise TransientError("no answer came")
        return result

    def _run(self) -> None:
        clocks[threading.get_ident()] = self
        try:
            self._program(self)
        except Crash:
            pass
        except BaseException as error:
            self.error = error
        finally:
            self.done = True
            self._stopped.release()

    def _wait(self) -> None:
        assert self._stopped.acquire(timeout=60), "a runner neither ended nor asked for its turn"


class Stepped:
    """Objects as one runner sees them: each operation waits for its turn."""

    def __init__(self, objects: Objects, runner: Runner) -> None:
        self._objects = objects
        self._runner = runner
        self.url = objects.url

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._objects, name)
        if name == "local_folder":  # no operation
            return method
        return lambda *args: self._runner.operate(lambda: method(*args))


clocks: dict[int, Runner] = {}
"""The runner of a thread, whose clock that thread sees."""


@dataclass
class Watch:
    """What stood under the artifact's key, and whether that may be."""

    objects: Objects
    stood: list[bytes] = field(default_factory=list)
    """Bodies of the manifest in order, without repetitions."""
    torn: set[bytes] = field(default_factory=set)
    """What is left of manifests that were cut short."""
    damaged: set[bytes] = field(default_factory=set)
    """Manifests whose data was."""
    discarding: bool = False

    def look(self, runners: list[Runner]) -> None:
        body = self.objects.read(MANIFEST)
        before = self.stood[-1] if self.stood else None
        if body is None:
            assert before is None or self.discarding, "a commit vanished"
        elif body != before:
            if body not in self.torn:  # else the disk did it
                harmed = before in self.torn | self.damaged
                assert before is None or harmed or self.discarding, "a commit was replaced that was whole"
                # Its own maker may put a manifest back that was torn.
                assert body not in self.stood or before in self.torn, "a commit that had been replaced stands again"
            self.stood.append(body)
        if body is not None and body not in self.torn | self.damaged:
            for path, (size, sha) in Manifest.from_bytes(body).files.items():
                data = read_data(self.objects, body, path)
                assert data is not None, "a commit stands without its data"
                assert (len(data), hashlib.sha256(data).hexdigest()) == (size, sha), "a commit stands with other data"
        told = {manifest.to_bytes() for runner in runners for manifest in runner.told}
        assert told <= set(self.stood), "a runner was told of a commit that never stood"
        if not (self.torn or self.damaged or self.discarding):
            assert len(told) <= 1, "two runners were told of different commits"
        for runner in runners:
            if runner.error is not None:
                raise runner.error

    def harm(self, how: str) -> None:
        """A disk that lied: what stands is torn, or its data is."""
        body = self.objects.read(MANIFEST)
        if body is None or body in self.torn | self.damaged:
            return
        if how == "manifest":
            torn = body[: len(body) // 2]
            self.torn.add(torn)
            overwrite(self.objects, MANIFEST, torn)
        else:
            self.damaged.add(body)
            overwrite(self.objects, f"{BASE}/{Manifest.from_bytes(body).attempt}/{FILES[0]}", b"torn")


def read_data(objects: Objects, body: bytes, path: str) -> bytes | None:
    return objects.read(f"{BASE}/{Manifest.from_bytes(body).attempt}/{path}")


def overwrite(objects: Objects, path: str, body: bytes) -> None:
    if isinstance(objects, Memory):
        objects.bodies[path] = body
    else:
        file = Path(objects.url) / path
        file.unlink()  # it may be linked from elsewhere
        file.write_bytes(body)


def committer(tries: int, unlike: bool, discard: bool) -> Callable[[Runner], None]:
    """What a stage does, tried again as Prefect would. With `unlike` no two runners make the same bytes."""
    again = (StoreError if discard else CorruptArtifact, TransientError)  # discarded before it was fetched

    def program(runner: Runner) -> None:
        for _ in range(tries):
            store = ArtifactStore(runner.objects, cache=runner.folder)  # type: ignore[arg-type]
            try:
                manifest = store.find(WORK)
                if manifest is None:
                    manifest = make(store, runner.number if unlike else 0)
                runner.told.append(manifest)
                folder = store.fetch(manifest.ref)
            except again:
                continue
            contents = {(folder / path).read_text() for path in FILES}
            assert len(contents) == 1, "the files of two attempts were mixed"
            return

    return program


def make(store: ArtifactStore, content: int) -> Manifest:
    with store.scratch() as scratch:
        for path in FILES:
            (scratch / path).parent.mkdir(exist_ok=True)
            (scratch / path).write_text(f"made by {content}")
        return store.commit(WORK, scratch)


def damager(watch: Watch, kinds: list[str]) -> Callable[[Runner], None]:
    def program(runner: Runner) -> None:
        for kind in kinds:
            with contextlib.suppress(TransientError):
                runner.operate(lambda kind=kind: watch.harm(kind))

    return program


def discarder(runner: Runner) -> None:
    store = ArtifactStore(runner.objects, cache=runner.folder)  # type: ignore[arg-type]
    for _ in range(2):
        try:
            if (manifest := store.find(WORK)) is not None:
                store.discard(manifest.ref)
        except (CorruptArtifact, TransientError):
            continue


def play(runners: list[Runner], schedule: list[Turn], look: Callable[[], None]) -> None:
    """Run all programs to their end: by the schedule as far as it goes, then in turn and without faults."""
    try:
        for runner in runners:
            runner.start()
        turns: Iterator[Turn] = itertools.chain(schedule, zip(itertools.count(), itertools.repeat("fine")))
        steps = 0
        while waiting := [runner for runner in runners if not runner.done]:
            number, fate = next(turns)
            waiting[number % len(waiting)].step(fate)
            look()
            steps += 1
            assert steps < 5000, "the runners keep each other from ending"
    finally:
        for runner in runners:
            while not runner.done:
                runner.step("dies before")
        for runner in runners:
            runner.thread.join()
            clocks.pop(runner.thread.ident or 0, None)


fates = st.sampled_from(["fine"] * 12 + ["lost answer"] * 2 + ["dies before", "dies after"])
schedules = st.lists(st.tuples(st.integers(0, 5), fates), max_size=60)


def play_commits(
    objects: Objects, folder: Path, schedule: list[Turn], count: int, kinds: list[str], unlike: bool, discard: bool
) -> Watch:
    watch = Watch(objects, discarding=discard)
    lost = sum(fate == "lost answer" for _, fate in schedule)
    tries = 2 + lost + len(kinds) + 4 * discard  # every fault costs a runner a try at most
    programs = [committer(tries, unlike, discard)] * count + [damager(watch, kinds)] + [discarder] * discard
    runners = [Runner(n, program, objects, folder / str(n)) for n, program in enumerate(programs)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(artifacts_module, "_PARALLEL_TRANSFERS", 1)  # one operation of a runner at a time
        play(runners, schedule, lambda: watch.look(runners))
    alive = [runner for runner in runners[:count] if not runner.crashed]
    assert all(runner.told for runner in alive), "a runner that lived never got its artifact"
    if alive and not discard:
        fresh = ArtifactStore(objects, cache=folder / "fresh")
        try:
            found = fresh.find(WORK)
            assert found is not None or watch.stood[-1] in watch.torn | watch.damaged
            if found is not None:
                fresh.fetch(found.ref)
        except CorruptArtifact:
            assert watch.stood[-1] in watch.damaged
    return watch


commit_cases = given(
    schedule=schedules,
    count=st.integers(2, 4),
    kinds=st.lists(st.sampled_from(["data", "manifest"]), max_size=2),
    unlike=st.booleans(),
    discard=st.booleans(),
)
quick = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(scope="module")
def ram(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for what is thrown away: in memory where there is such a file system, since every write is synced."""
    return Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else tmp_path_factory.mktemp("ram")


def commits_in_memory(ram: Path, **case: Any) -> None:
    with tempfile.TemporaryDirectory(dir=ram) as folder:
        play_commits(Memory(), Path(folder), **case)


def commits_on_a_disk(ram: Path, **case: Any) -> None:
    with tempfile.TemporaryDirectory(dir=ram) as folder:
        play_commits(LocalObjects(Path(folder) / "store"), Path(folder), **case)


@settings(quick, max_examples=120)
@commit_cases
def test_one_whole_commit_stands_whatever_happens_in_between(ram: Path, **case: Any) -> None:
    commits_in_memory(ram, **case)


@settings(quick, max_examples=40)
@commit_cases
def test_one_whole_commit_stands_on_a_disk_too(ram: Path, **case: Any) -> None:
    commits_on_a_disk(ram, **case)


@pytest.mark.long
@settings(quick, max_examples=5000)
@commit_cases
def test_one_whole_commit_stands_through_thousands_of_interleavings(ram: Path, **case: Any) -> None:
    commits_in_memory(ram, **case)


@pytest.mark.long
@settings(quick, max_examples=1000)
@commit_cases
def test_one_whole_commit_stands_on_a_disk_through_a_thousand_interleavings(ram: Path, **case: Any) -> None:
    commits_on_a_disk(ram, **case)


# The checker itself


class OverwritingCreate(Memory):
    def create(self, path: str, body: bytes) -> bytes:
        self.bodies[path] = body
        return body


class ForgetfulUpload(Memory):
    def upload(self, file: Path, path: str) -> None:
        if not path.endswith(FILES[1]):
            super().upload(file, path)


class OverwritingSwap(Memory):
    def swap(self, path: str, expected: bytes | None, body: bytes) -> bool:
        self.bodies[path] = body
        return True


@pytest.mark.parametrize(
    ("objects", "kinds", "complaint"),
    [
        (OverwritingCreate, [], "replaced that was whole"),
        (ForgetfulUpload, [], "without its data"),
        (OverwritingSwap, ["data"], "replaced that was whole"),
    ],
)
def test_a_store_that_breaks_its_promise_is_caught(
    ram: Path, objects: type[Memory], kinds: list[str], complaint: str
) -> None:
    # In turn: both look, both upload, both commit. Damage, where there is any, comes when the first one stands.
    schedules: list[list[Turn]] = [[(n % 2, "fine") for n in range(k)] for k in range(4, 24)]
    complaints = []
    for schedule in schedules:
        try:
            with tempfile.TemporaryDirectory(dir=ram) as folder:
                play_commits(objects(), Path(folder), schedule, 2, kinds, unlike=True, discard=False)
        except AssertionError as error:
            complaints.append(str(error))
    assert any(complaint in text for text in complaints), complaints


# The lease

TTL = 4.0


@dataclass
class Record:
    """Who held the lease, in order."""

    objects: Objects
    holders: list[str] = field(default_factory=list)
    leases: list[Lease] = field(default_factory=list)

    def look(self, runners: list[Runner]) -> None:
        standing = read_lease(self.objects, "run")
        holder = standing.holder if standing else None
        if holder is not None and holder != (self.holders[-1] if self.holders else None):
            assert holder not in self.holders, "a lease that had been taken over stands again"
            self.holders.append(holder)
        for runner in runners:
            if runner.error is not None:
                raise runner.error

    def is_held_by(self, lease: Lease) -> bool:
        standing = read_lease(self.objects, "run")
        return standing is not None and standing.holder == lease._record.holder


def worker(record: Record, beats: int) -> Callable[[Runner], None]:
    def program(runner: Runner) -> None:
        for _ in range(2):
            try:
                lease = take(runner.objects, "run", {})  # type: ignore[arg-type]
            except (RunBusy, TransientError):
                continue
            record.leases.append(lease)
            assert record.is_held_by(lease), "told that it holds, and does not"
            for _ in range(beats):
                try:
                    if not lease._move():
                        assert not record.is_held_by(lease), "told that it lost, and holds"
                        return
                    assert record.is_held_by(lease), "told that it holds, and does not"
                except TransientError:
                    pass  # the thread that beats goes on as well
            try:
                lease.release("finished")
            except TransientError:
                return
            standing = read_lease(record.objects, "run")
            assert standing is not None
            assert standing.holder is not None or standing.state == "finished"
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


@settings(quick, max_examples=120)
@lease_cases
def test_one_runner_at_a_time_is_told_that_it_holds_the_lease(ram: Path, **case: Any) -> None:
    play_leases(Memory(), ram, **case)


@settings(quick, max_examples=40)
@lease_cases
def test_one_runner_at_a_time_holds_a_lease_on_a_disk(ram: Path, **case: Any) -> None:
    with tempfile.TemporaryDirectory(dir=ram) as folder:
        play_leases(LocalObjects(Path(folder)), ram, **case)


@pytest.mark.long
@settings(quick, max_examples=5000)
@lease_cases
def test_one_runner_at_a_time_holds_the_lease_through_thousands_of_interleavings(ram: Path, **case: Any) -> None:
    play_leases(Memory(), ram, **case)


def test_a_lease_in_a_store_that_overwrites_is_caught(ram: Path) -> None:
    schedule: list[Turn] = [(n % 2, "fine") for n in range(12)]
    with pytest.raises(AssertionError, match=r"stands again|and does not|and holds"):
        play_leases(OverwritingSwap(), ram, schedule, 2, 4)


# Between the system calls of one operation on a disk


@pytest.fixture
def disk(tmp_path: Path) -> LocalObjects:
    return LocalObjects(tmp_path)


def just_before(patch: pytest.MonkeyPatch, call: str, what: Callable[[], None]) -> None:
    """Do something, once, right before a function of `os` is called."""
    real = getattr(os, call)

    def called(*args: Any, **kwargs: Any) -> Any:
        patch.undo()
        what()
        return real(*args, **kwargs)

    patch.setattr(os, call, called)


def test_a_swap_for_nothing_does_not_overwrite_a_creator_who_was_faster(
    disk: LocalObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    for call in ("link", "replace"):  # whichever it uses to give the object its name
        just_before(monkeypatch, call, lambda: disk.create("x", b"theirs"))
    assert not disk.swap("x", None, b"mine")
    assert disk.read("x") == b"theirs"


def test_a_creator_who_was_refused_by_what_is_deleted_by_now_creates(
    disk: LocalObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk.create("x", b"theirs")
    link = os.link

    def refused(source: Path, target: Path) -> None:
        try:
            link(source, target)
        except FileExistsError:
            disk.delete("x")
            raise

    monkeypatch.setattr(os, "link", refused)
    assert disk.create("x", b"mine") == b"mine"
    assert disk.read("x") == b"mine"


def test_a_reader_on_a_disk_sees_the_old_or_the_new_body_and_nothing_else(disk: LocalObjects) -> None:
    bodies = [bytes([n]) * 100_000 for n in range(20)]
    disk.create("x", bodies[0])
    seen: set[bytes | None] = set()
    ended = threading.Event()

    def look() -> None:
        while not ended.is_set():
            seen.add(disk.read("x"))

    reader = threading.Thread(target=look)
    reader.start()
    try:
        for old, new in itertools.pairwise(bodies):
            assert disk.swap("x", old, new)
        deadline = time.monotonic() + 20
        while bodies[-1] not in seen and time.monotonic() < deadline:
            time.sleep(0.001)
    finally:
        ended.set()
        reader.join()
    assert bodies[-1] in seen
    assert seen <= set(bodies)
