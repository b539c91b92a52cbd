"""Deletion of garbage: listed first, interrupted anywhere, repeated."""

from __future__ import annotations

from pathlib import Path

import pytest

from optune_core.console.collect import print_collection
from optune_core.errors import StoreError
from optune_core.storage import Work
from optune_core.storage.gc import delete_garbage, find_garbage
from tests.unit.gc.worlds import HOUR, World, damage


def test_a_dry_run_lists_everything_and_deletes_nothing(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    one = world.make("one")
    world.age()
    before = world.files()
    print_collection(str(world.objects.root), dry_run=True, grace_hours=1, masters=False)
    assert world.files() == before
    shown = capsys.readouterr().out
    assert all(path in shown for path in world.of(one))
    print_collection(str(world.objects.root), dry_run=False, grace_hours=1, masters=False)
    assert world.files() == set()


def readable_in_part(world: World) -> list[str]:
    """Return the missing files of committed artifacts."""
    manifests = [path for path in world.files() if path.count("/") == 3 and path.endswith("/manifest.json")]
    missing = []
    for path in manifests:
        _, stage, key, _ = path.split("/")
        manifest = world.store.committed(stage, key)
        assert manifest is not None
        missing += sorted(world.of(manifest) - world.files())
    return missing


def rubbish(world: World) -> None:
    kept = world.make("kept")
    for name in ("one", "two"):
        with world.store.scratch() as scratch:
            (scratch / "manifest.json").write_text("an attempt's file may be called so")
            (scratch / "data.bin").write_text(name)
            world.store.commit(Work("demo", 1, {"name": name}), scratch)
    damage(world, world.make("three"))
    world.file("artifacts/demo/key/attempt/data.bin")
    world.run("run", "finished", inputs={"policy": kept})
    world.age()


def test_deletion_may_be_interrupted_anywhere_and_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uninterrupted = World(tmp_path / "uninterrupted" / "store")
    rubbish(uninterrupted)
    steps = len(uninterrupted.collect())
    assert steps == 11
    for step in range(steps):
        world = World(tmp_path / str(step) / "store")
        rubbish(world)
        garbage = find_garbage(world.store, HOUR)
        left = step
        delete = world.objects.delete

        def dies(path: str, delete=delete) -> None:  # type: ignore[no-untyped-def]
            nonlocal left
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
            delete(path)

        with monkeypatch.context() as patch:
            patch.setattr(world.objects, "delete", dies)
            with pytest.raises(KeyboardInterrupt):
                delete_garbage(world.store, garbage)
        assert readable_in_part(world) == []
        world.collect()
        assert len(world.files()) == len(uninterrupted.files())
        assert readable_in_part(world) == []


def test_deletion_of_the_same_list_twice_is_harmless(world: World) -> None:
    world.make("one")
    world.age()
    garbage = find_garbage(world.store, HOUR)
    delete_garbage(world.store, garbage)
    delete_garbage(world.store, garbage)
    assert world.files() == set()


def test_discarding_deletes_the_manifest_before_the_data(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    one = world.make("one")
    deleted: list[str] = []
    delete = world.objects.delete

    def noted(path: str) -> None:
        deleted.append(path)
        delete(path)
        assert readable_in_part(world) == []

    monkeypatch.setattr(world.objects, "delete", noted)
    world.store.discard(one.ref)
    assert deleted[0] == f"artifacts/demo/{one.ref.key}/manifest.json"
    assert set(deleted) == world.of(one)
    assert world.files() == set()
    with pytest.raises(StoreError, match="holds no artifact"):
        world.store.fetch(one.ref)
    world.store.discard(one.ref)  # nothing is there: nothing to do
