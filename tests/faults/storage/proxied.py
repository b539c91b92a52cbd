"""A store behind a scripted proxy, and commits to it.

`Stage.direct` sees the server itself: what it really holds.
"""

from __future__ import annotations

import copy
import uuid
from pathlib import Path
from typing import Any

import pytest

from optune_core.storage import ArtifactStore, Manifest, Work
from optune_core.storage.gc import find_garbage
from optune_core.storage.s3 import S3Objects
from tests.faults import s3_proxy as faults
from tests.faults.s3_proxy import S3Proxy

WORK = Work("demo", 1, {"rho": 0.5})
DATA = bytes(range(256)) * 40


class QuickS3(S3Objects):
    """The real client with short pauses and without the retries of its library."""

    _PAUSE_SECONDS = 0.01
    _TIMEOUTS = {"connect_timeout": 5, "read_timeout": 20, "retries": {"max_attempts": 0}}  # noqa: RUF012


class ImpatientS3(QuickS3):
    """A client that gives up soon, for requests that hang."""

    _TIMEOUTS = {"connect_timeout": 5, "read_timeout": 2, "retries": {"max_attempts": 0}}  # noqa: RUF012


class Stage:
    """The parts of one test: a proxied store, and the server behind it."""

    def __init__(self, proxy: S3Proxy, url: str, direct: S3Objects, objects: S3Objects, folder: Path) -> None:
        self.proxy = proxy
        self.url = url
        self.direct = direct
        self.folder = folder
        self.objects = objects

    def store(self, objects: S3Objects | None = None) -> ArtifactStore:
        """Return a store as another process sees it, without anything remembered or downloaded."""
        return ArtifactStore(objects or self.objects, cache=self.folder / uuid.uuid4().hex)

    def truth(self) -> ArtifactStore:
        return self.store(self.direct)

    def manifests(self) -> list[str]:
        return [entry.path for entry in self.direct.walk("artifacts") if entry.path.endswith("/manifest.json")]

    def file(self, body: bytes = DATA) -> Path:
        file = self.folder / uuid.uuid4().hex
        file.write_bytes(body)
        return file


def below(objects: QuickS3, url: str) -> QuickS3:
    other = copy.copy(objects)
    other.url, other._root = url, url.removeprefix("s3://")
    return other


def commit(store: ArtifactStore, work: Work = WORK, body: bytes = DATA, who: float = 0.0) -> Manifest:
    """Commit a body; `who` goes into the timing, by which committers of the same work are distinguished."""
    with store.scratch() as scratch:
        (scratch / "data.bin").write_bytes(body)
        return store.commit(work, scratch, timing={"who": who})


def stored_file(manifest: Manifest) -> str:
    return f"artifacts/{manifest.ref.stage}/{manifest.ref.key}/{manifest.attempt}/data.bin"


BEFORE_THE_SERVER = [faults.hang_up, faults.unavailable, faults.slow_down, faults.broken, faults.conflict]
AFTER_THE_SERVER = [faults.lose_answer, faults.own_success_as_412]
TRANSIENT = [*BEFORE_THE_SERVER, *AFTER_THE_SERVER]
each_transient = pytest.mark.parametrize("fault", TRANSIENT, ids=lambda fault: fault.__name__)
REQUESTS_OF_A_COMMIT = {
    "data": ("PUT", "/data.bin"),
    "manifest": ("PUT", "/manifest.json"),
    "reading back": ("GET", "/manifest.json"),
    "looking for damage": ("GET", r"\.damaged"),
}

each_request = pytest.mark.parametrize("request_", REQUESTS_OF_A_COMMIT)


def assert_committed_once(stage: Stage, manifest: Manifest, who: float) -> None:
    assert manifest.timing["who"] == who
    assert len(stage.manifests()) == 1
    truth = stage.truth()
    assert truth.find(WORK) == manifest
    assert (truth.fetch(manifest.ref) / "data.bin").read_bytes() == DATA


def half_an_hour_of_grace(objects: Any) -> set[str]:
    garbage = find_garbage(ArtifactStore(objects), grace_seconds=1800)
    return {entry.path for entry in (*garbage.commits, *garbage.data)}


def leftovers(root: Path) -> list[str]:
    return [file.name for file in root.rglob(".*") if file.name != ".lock"]
