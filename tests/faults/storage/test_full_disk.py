"""A full disk is reported, leaves no partial objects, and can be used again."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from optune_core.errors import DiskFull
from optune_core.process import failpoints
from optune_core.storage import ArtifactStore, Ledger, Work
from optune_core.storage import local as local_module
from optune_core.storage.gc import delete_garbage, find_garbage
from optune_core.storage.local import LocalObjects
from tests.faults.storage.proxied import WORK, Stage, commit, leftovers

pytestmark = pytest.mark.faults


def fail_at(point: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    folder.mkdir()
    (folder / "plan").write_text(f"no-space {point}\n")
    monkeypatch.setenv(failpoints._ENVIRONMENT, str(folder))


@pytest.mark.parametrize("point", ["upload.written/demo", "create.written/demo"])
def test_no_space_at_a_step_of_a_commit_leaves_nothing_behind(
    tmp_path: Path, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ArtifactStore(LocalObjects(tmp_path / "store"), cache=tmp_path / "cache")
    fail_at(point, monkeypatch, tmp_path / "failpoints")
    with pytest.raises(DiskFull, match="optune gc"):
        commit(store)
    assert (tmp_path / "failpoints" / "reached").exists()
    assert store.find(WORK) is None
    assert leftovers(tmp_path / "store") == []
    assert commit(store) == store.find(WORK)


@pytest.mark.parametrize("call", ["write", "fsync", "link", "replace"])
def test_a_full_disk_at_any_system_call_leaves_the_old_objects(
    tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = LocalObjects(tmp_path / "store")
    objects.create("x", b"old")

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def half_written(file: Path, body: bytes) -> None:
        file.write_bytes(body[: len(body) // 2])
        full()

    with monkeypatch.context() as patch:
        if call == "write":
            patch.setattr(local_module, "write", half_written)
        else:
            patch.setattr(os, call, full)
        if call != "replace":
            with pytest.raises(DiskFull):
                objects.create("y", b"new")
        if call != "link":
            with pytest.raises(DiskFull):
                objects.swap("x", b"old", b"new")
    assert (objects.read("x"), objects.read("y")) == (b"old", None)
    assert leftovers(tmp_path) == []
    assert objects.create("y", b"new") == b"new" and objects.swap("x", b"old", b"new")


def test_a_commit_on_a_full_disk_is_refused_and_succeeds_once_there_is_room(small_disk: Path, tmp_path: Path) -> None:
    store = ArtifactStore(LocalObjects(small_disk / "store"), cache=tmp_path / "cache")
    first = commit(store, body=b"a" * 100_000)
    source = tmp_path / "source"
    source.mkdir()
    (source / "data.bin").write_bytes(b"b" * 200_000)
    other = Work("demo", 1, {"rho": 0.7})
    with pytest.raises(DiskFull, match=r"ENOSPC.*optune gc"):
        store.commit(other, source)
    assert store.find(other) is None
    assert leftovers(small_disk) == []
    assert (ArtifactStore(store.objects).fetch(first.ref) / "data.bin").stat().st_size == 100_000
    store.discard(first.ref)
    again = store.commit(other, source)
    assert (ArtifactStore(store.objects).fetch(again.ref) / "data.bin").stat().st_size == 200_000


def test_records_survive_a_full_disk(small_disk: Path) -> None:
    objects = LocalObjects(small_disk / "store")
    ledger = Ledger(objects, "run")
    ledger.commit_iteration(0, {"n": 0})
    objects.create("x", b"old")
    ballast = small_disk / "ballast"
    with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(b"x" * 4096)
    with pytest.raises(DiskFull):
        ledger.commit_iteration(1, {"n": 1})
    with pytest.raises(DiskFull):
        objects.swap("x", b"old", b"new")
    assert (ledger.iterations(), objects.read("x")) == ([{"n": 0}], b"old")
    assert leftovers(small_disk) == []
    ballast.unlink()
    assert ledger.commit_iteration(1, {"n": 1}) == {"n": 1}
    assert objects.swap("x", b"old", b"new")


def test_a_full_cache_is_no_damage_to_the_store(stage: Stage, small_disk: Path) -> None:
    body = b"x" * 400_000
    manifest = commit(stage.truth(), body=body)
    with pytest.raises(DiskFull, match="no space"):
        ArtifactStore(stage.objects, cache=small_disk).fetch(manifest.ref)
    assert stage.truth().find(WORK) == manifest
    assert [file for file in small_disk.rglob("*") if file.is_file()] == []
    assert (stage.store().fetch(manifest.ref) / "data.bin").read_bytes() == body


def test_collecting_garbage_makes_room_on_a_full_disk(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = LocalObjects(small_disk / "store")
    store = ArtifactStore(objects)
    (small_disk / "left").write_bytes(b"x" * 150_000)
    objects.upload(small_disk / "left", "artifacts/demo/key/attempt/data.bin")
    (small_disk / "left").unlink()
    with (small_disk / "ballast").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(b"x" * 4096)
    delete_garbage(store, find_garbage(store, grace_seconds=-60))
    assert commit(store).files.keys() == {"data.bin"}
