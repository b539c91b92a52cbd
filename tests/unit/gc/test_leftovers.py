"""Leftovers of killed writers and of damage are deleted once they are old by the clock of the store."""

from __future__ import annotations

import os
import time

import pytest

from optune_core.storage import ArtifactStore
from optune_core.storage.gc import find_garbage
from tests.unit.gc.worlds import HOUR, World, damage


def test_uncommitted_attempts_are_deleted_when_they_are_old(world: World) -> None:
    kept = world.make("kept")
    base = f"artifacts/demo/{kept.ref.key}"
    lost = world.file(f"{base}/0123456789abcdef/data.bin")
    writing = world.file(f"{base}/fedcba9876543210/data.bin", young=True)
    alone = world.file("artifacts/demo/otherkey/0123456789abcdef/data.bin")
    world.run("run", "finished", inputs={"policy": kept})
    assert world.collect() == {lost, alone}
    assert writing in world.files()


def test_temporary_files_of_killed_writers_are_deleted_when_they_are_old(world: World) -> None:
    kept = world.make("kept")
    world.run("run", "finished", inputs={"policy": kept})
    old = {
        world.file(path)
        for path in (
            f"artifacts/demo/{kept.ref.key}/.manifest.json.0123",
            f"artifacts/demo/{kept.ref.key}/{'a' * 32}/.data.bin.0123",
            "runs/run/.lease.json.0123",
            "runs/run/iterations/.0000.json.0123",
            "scratch/tmpabc/half.bin",
            "probe/0123",
        )
    }
    for path in ("runs/run/.lease.json.4567", "scratch/tmpdef/half.bin", "probe/4567"):
        world.file(path, young=True)
    assert world.collect() == old


def test_records_of_runs_are_never_deleted(world: World) -> None:
    one = world.make("one")
    world.run("run", "failed", inputs={"policy": one}, records=[{"policy": one}], evaluations={0: one})
    world.collect()
    assert {path for path in world.files() if path.startswith("runs/")} == {
        "runs/run/run.json",
        "runs/run/lease.json",
        "runs/run/iterations/0000.json",
        "runs/run/held_out/0000.json",
    }


def test_the_old_data_and_the_mark_of_a_remade_artifact_are_deleted(world: World) -> None:
    old = world.make("one")
    mark = damage(world, old)
    new = world.make("one")
    world.run("run", "finished", inputs={"policy": new})
    assert world.collect() == (world.of(old) | {mark}) - world.of(new)
    assert ArtifactStore(world.objects).fetch(new.ref).is_dir()


def test_a_needed_damaged_artifact_keeps_its_mark(world: World) -> None:
    """An artifact without its mark would count as undamaged."""
    one = world.make("one")
    mark = damage(world, one)
    world.run("run", "finished", inputs={"policy": one})
    assert world.collect() == set()
    assert mark in world.files()


def test_a_torn_manifest_and_its_data_are_deleted(world: World) -> None:
    one = world.make("one")
    path = world.objects.root / f"artifacts/demo/{one.ref.key}/manifest.json"
    path.write_text('{"torn')
    world.run("run", "finished", inputs={"policy": one})
    assert world.collect() == world.of(one)


def test_a_recently_committed_artifact_keeps_its_older_data(world: World) -> None:
    one = world.make("one")
    manifest = f"artifacts/demo/{one.ref.key}/manifest.json"
    world.young.add(manifest)
    assert world.collect() == set(), "its data is older than its commit, and needed by it"
    world.young.clear()
    assert world.collect() == world.of(one)


@pytest.mark.parametrize("seconds", [-5 * HOUR, 5 * HOUR])
def test_age_is_counted_by_the_stores_clock(world: World, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The times of the files and the `now` of the store are off by the same hours."""
    young, old = world.file("artifacts/demo/key/a/young.bin"), world.file("artifacts/demo/key/a/old.bin")
    now = time.time() + seconds
    os.utime(world.objects.root / young, (now - HOUR / 2, now - HOUR / 2))
    os.utime(world.objects.root / old, (now - 2 * HOUR, now - 2 * HOUR))
    monkeypatch.setattr(world.objects, "now", lambda: now)
    assert [entry.path for entry in find_garbage(world.store, HOUR).data] == [old]


def test_what_becomes_garbage_is_counted_in_bytes(world: World) -> None:
    one, two = world.make("one"), world.make("two")
    world.run("run", "finished", inputs={"policy": one})
    world.age()
    garbage = find_garbage(world.store, HOUR)

    def size(paths: set[str]) -> int:
        return sum((world.objects.root / path).stat().st_size for path in paths)

    assert garbage.bytes == size(world.of(two))
    assert garbage.kept_bytes == size(world.files() - world.of(two))
