"""`ArtifactStore.commit`, `find` and `fetch` under interleavings, crashes and lost answers that hypothesis chooses."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optune_core.errors import CorruptArtifact, StoreError, TransientError
from optune_core.storage import ArtifactStore, Manifest, Work
from optune_core.storage import artifacts as artifacts_module
from optune_core.storage.local import LocalObjects
from optune_core.storage.objects import Objects
from tests.faults.protocol.memory import Memory, OverwritingSwap
from tests.faults.protocol.turns import Runner, Turn, play, schedules

pytestmark = pytest.mark.faults

WORK = Work("demo", 1, {"rho": 0.5})
BASE = f"artifacts/demo/{WORK.key}"
MANIFEST = f"{BASE}/manifest.json"
FILES = ("a.bin", "sub/b.bin")


@dataclass
class Watch:
    """The manifests that an artifact's key has had, and checks that each was allowed."""

    objects: Objects
    seen: list[bytes] = field(default_factory=list)
    """Bodies of the manifest in order, without repetitions."""
    torn: set[bytes] = field(default_factory=set)
    """Manifests after they were cut short."""
    damaged: set[bytes] = field(default_factory=set)
    """Manifests whose data was damaged."""
    discarding: bool = False

    def look(self, runners: list[Runner]) -> None:
        body = self.objects.read(MANIFEST)
        before = self.seen[-1] if self.seen else None
        if body is None:
            assert before is None or self.discarding, "a commit vanished"
        elif body != before:
            if body not in self.torn:  # else the disk did it
                harmed = before in self.torn | self.damaged
                assert before is None or harmed or self.discarding, "a complete commit was replaced"
                # Its own maker may put a manifest back that was torn.
                assert body not in self.seen or before in self.torn, "a commit that had been replaced is back"
            self.seen.append(body)
        if body is not None and body not in self.torn | self.damaged:
            for path, (size, sha) in Manifest.from_bytes(body).files.items():
                data = read_data(self.objects, body, path)
                assert data is not None, "a commit has no data"
                assert (len(data), hashlib.sha256(data).hexdigest()) == (size, sha), "a commit has other data"
        got = {manifest.to_bytes() for runner in runners for manifest in runner.got}
        assert got <= set(self.seen), "a runner got a commit that never existed"
        if not (self.torn or self.damaged or self.discarding):
            assert len(got) <= 1, "two runners got different commits"
        for runner in runners:
            if runner.error is not None:
                raise runner.error

    def harm(self, how: str) -> None:
        """Damage the committed manifest or its data."""
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
    """Return a program that finds, makes and fetches as a stage does, with retries.

    Args:
        unlike: no two runners make the same bytes.
    """
    again = (StoreError if discard else CorruptArtifact, TransientError)  # discarded before it was fetched

    def program(runner: Runner) -> None:
        for _ in range(tries):
            store = ArtifactStore(runner.objects, cache=runner.folder)  # type: ignore[arg-type]
            try:
                manifest = store.find(WORK)
                if manifest is None:
                    manifest = make(store, runner.number if unlike else 0)
                runner.got.append(manifest)
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
    assert all(runner.got for runner in alive), "a runner that lived never got its artifact"
    if alive and not discard:
        fresh = ArtifactStore(objects, cache=folder / "fresh")
        try:
            found = fresh.find(WORK)
            assert found is not None or watch.seen[-1] in watch.torn | watch.damaged
            if found is not None:
                fresh.fetch(found.ref)
        except CorruptArtifact:
            assert watch.seen[-1] in watch.damaged
    return watch


commit_cases = given(
    schedule=schedules,
    count=st.integers(2, 4),
    kinds=st.lists(st.sampled_from(["data", "manifest"]), max_size=2),
    unlike=st.booleans(),
    discard=st.booleans(),
)


def commits_in_memory(ram: Path, **case: Any) -> None:
    with tempfile.TemporaryDirectory(dir=ram) as folder:
        play_commits(Memory(), Path(folder), **case)


def commits_on_a_disk(ram: Path, **case: Any) -> None:
    with tempfile.TemporaryDirectory(dir=ram) as folder:
        play_commits(LocalObjects(Path(folder) / "store"), Path(folder), **case)


@settings(max_examples=120)
@commit_cases
def test_one_complete_commit_remains_under_any_interleaving(ram: Path, **case: Any) -> None:
    commits_in_memory(ram, **case)


@settings(max_examples=40)
@commit_cases
def test_one_complete_commit_remains_on_a_disk(ram: Path, **case: Any) -> None:
    commits_on_a_disk(ram, **case)


@pytest.mark.long
@settings(max_examples=5000)
@commit_cases
def test_one_complete_commit_remains_through_thousands_of_interleavings(ram: Path, **case: Any) -> None:
    commits_in_memory(ram, **case)


@pytest.mark.long
@settings(max_examples=1000)
@commit_cases
def test_one_complete_commit_remains_on_a_disk_through_a_thousand_interleavings(ram: Path, **case: Any) -> None:
    commits_on_a_disk(ram, **case)


class OverwritingCreate(Memory):
    def create(self, path: str, body: bytes) -> bytes:
        self.bodies[path] = body
        return body


class ForgetfulUpload(Memory):
    def upload(self, file: Path, path: str) -> None:
        if not path.endswith(FILES[1]):
            super().upload(file, path)


@pytest.mark.parametrize(
    ("objects", "kinds", "complaint"),
    [
        (OverwritingCreate, [], "complete commit was replaced"),
        (ForgetfulUpload, [], "has no data"),
        (OverwritingSwap, ["data"], "complete commit was replaced"),
    ],
)
def test_the_checker_catches_a_store_that_breaks_its_contract(
    ram: Path, objects: type[Memory], kinds: list[str], complaint: str
) -> None:
    # In turn: both look, both upload, both commit. Damage, where there is any, comes when the first one is committed.
    schedules: list[list[Turn]] = [[(n % 2, "fine") for n in range(k)] for k in range(4, 24)]
    complaints = []
    for schedule in schedules:
        try:
            with tempfile.TemporaryDirectory(dir=ram) as folder:
                play_commits(objects(), Path(folder), schedule, 2, kinds, unlike=True, discard=False)
        except AssertionError as error:
            complaints.append(str(error))
    assert any(complaint in text for text in complaints), complaints
