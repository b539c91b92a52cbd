"""Garbage collection: exactly what no run needs and nobody writes, and no reader ever sees a part of an artifact."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optune_core.console.collect import print_collection
from optune_core.errors import CorruptArtifact, StoreError
from optune_core.storage import ArtifactStore, Ledger, Manifest, Work
from optune_core.storage.gc import delete_garbage, find_garbage
from optune_core.storage.lease import LeaseRecord, State
from optune_core.storage.objects import LocalObjects
from optune_core.storage.sweeps import SweepRecord

HOUR = 3600.0


class World:
    """A store that is filled by hand. Everything in it is made old before garbage is collected, unless it is kept
    young on purpose."""

    def __init__(self, root: Path) -> None:
        self.objects = LocalObjects(root)
        self.store = ArtifactStore(self.objects, cache=root.with_name("cache"))
        self.young: set[str] = set()

    def policy(self, name: str, parents: Iterable[Manifest] = ()) -> Manifest:
        """An artifact with the folders of a trained policy."""
        work = Work("policy", 1, {"name": name}, {f"parent-{i}": p.ref for i, p in enumerate(parents)})
        with self.store.scratch() as scratch:
            for folder in ("master", "model"):
                (scratch / folder).mkdir()
                (scratch / folder / "model.safetensors").write_text(f"{folder} of {name}")
            return self.store.commit(work, scratch)

    def make(self, name: str, parents: Iterable[Manifest] = (), *, stage: str = "demo", **params: object) -> Manifest:
        work = Work(stage, 1, {"name": name, **params}, {f"parent-{i}": p.ref for i, p in enumerate(parents)})
        with self.store.scratch() as scratch:
            (scratch / "data.bin").write_text(f"data of {name}")
            (scratch / "sub").mkdir()
            (scratch / "sub" / "more.bin").write_text("more")
            return self.store.commit(work, scratch)

    def file(self, path: str, body: str = "x", *, young: bool = False) -> str:
        self.objects.create(path, body.encode())
        if young:
            self.young.add(path)
        return path

    def run(
        self,
        name: str,
        state: State | None,
        *,
        inputs: dict[str, Manifest] | None,
        records: Iterable[dict[str, Manifest]] = (),
        evaluations: dict[int, Manifest] | None = None,
    ) -> None:
        """`inputs` None: the run is in preparation. `state` None: there is no lease record."""
        ledger = Ledger(self.objects, name)
        if inputs is not None:
            ledger.open({"name": name}, {role: made.ref.to_json() for role, made in inputs.items()})
        for t, artifacts in enumerate(records):
            refs = {role: made.ref.to_json() for role, made in artifacts.items()}
            ledger.commit_iteration(t, {"iteration": t, "artifacts": refs})
        for t, made in (evaluations or {}).items():
            ledger.commit_evaluation(t, {"artifacts": {"scores": [made.ref.to_json()]}})
        if state is not None:
            lease = LeaseRecord(state, None, "", None, 1, 1, 1, "")
            self.objects.create(f"runs/{name}/lease.json", lease.to_bytes())

    def files(self) -> set[str]:
        """Every file of the store but its lock."""
        return {entry.path for entry in self.objects.walk("") if entry.path != ".lock"}

    def of(self, *manifests: Manifest) -> set[str]:
        """The files of artifacts, commits included."""
        found = set()
        for manifest in manifests:
            base = f"artifacts/{manifest.ref.stage}/{manifest.ref.key}"
            found |= {f"{base}/manifest.json", *(f"{base}/{manifest.attempt}/{path}" for path in manifest.files)}
        return found

    def age(self) -> None:
        long_ago = time.time() - 2 * HOUR
        for path in self.files() - self.young:
            os.utime(self.objects.root / path, (long_ago, long_ago))

    def collect(self, *, masters: bool = False) -> set[str]:
        """Collect garbage older than an hour. Returns what went."""
        self.age()
        before = self.files()
        delete_garbage(self.store, find_garbage(self.store, HOUR, masters=masters))
        return before - self.files()


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "store")


def test_a_store_without_runs_is_all_garbage(world: World) -> None:
    one = world.make("one")
    assert world.collect() == world.of(one)


def test_an_empty_store_has_no_garbage(world: World) -> None:
    garbage = find_garbage(world.store, HOUR)
    assert (garbage.commits, garbage.data, garbage.bytes, garbage.kept_bytes) == ([], [], 0, 0)
    assert world.files() == set(), "looking for garbage left some"


def test_of_a_finished_run_its_records_their_makings_and_evaluations_are_kept(world: World) -> None:
    policy, prompts = world.make("policy"), world.make("prompts")
    shard = world.make("shard", [policy, prompts])
    replay = world.make("replay", [shard])
    trained = world.make("trained", [policy, replay])
    scores = world.make("scores", [world.make("held out", [trained])])
    begun = world.make("begun", [trained])  # by a start that was meant to go further
    strange = world.make("strange")
    world.run(
        "run",
        "finished",
        inputs={"policy": policy, "prompts": prompts},
        records=[{"replay": replay, "policy": trained}],
        evaluations={1: scores},
    )
    assert world.collect() == world.of(begun, strange)
    for manifest in (policy, prompts, shard, replay, trained, scores):
        assert ArtifactStore(world.objects).fetch(manifest.ref).is_dir()


@pytest.mark.parametrize("state", ["working", "interrupted", "stopped", "failed", None])
def test_of_a_run_that_may_go_on_the_work_in_progress_is_kept(world: World, state: State | None) -> None:
    policy = world.make("policy")
    replay = world.make("replay", [policy])
    trained = world.make("trained", [policy, replay])
    shard = world.make("shard", [trained])
    scored = world.make("scored", [shard])
    tried = world.make("tried", [policy], learning_rate=9)  # of an iteration that is committed
    world.run("run", state, inputs={"policy": policy}, records=[{"replay": replay, "policy": trained}])
    assert world.collect() == world.of(tried)
    assert ArtifactStore(world.objects).fetch(scored.ref).is_dir()


def test_before_the_first_iteration_the_work_in_progress_is_what_was_made_from_the_inputs(world: World) -> None:
    policy, other = world.make("policy"), world.make("other")
    world.make("shard", [policy])
    theirs = world.make("theirs", [other])
    world.run("run", "interrupted", inputs={"policy": policy})
    assert world.collect() == world.of(other, theirs)


def test_work_in_progress_is_found_by_content_as_the_run_finds_it(world: World) -> None:
    """Equal bytes made in two ways are the same parent: a run goes on from what was made from the other one."""
    ours, theirs = world.make("policy", way="ours"), world.make("policy", way="theirs")
    assert ours.ref.digest == theirs.ref.digest and ours.ref.key != theirs.ref.key
    shard = world.make("shard", [theirs])
    assert world.store.find(Work("demo", 1, {"name": "shard"}, {"parent-0": ours.ref})) == shard
    world.run("run", "interrupted", inputs={"policy": ours})
    assert world.collect() == set()


def test_while_a_run_is_in_preparation_everything_committed_is_kept(world: World) -> None:
    world.make("found, but not recorded yet")
    left = world.file("artifacts/demo/key/attempt/data.bin")
    world.run("run", "working", inputs=None)
    assert world.collect() == {left}


@pytest.mark.parametrize("state", ["finished", "failed", "stopped"])
def test_a_run_that_ended_in_preparation_holds_nothing(world: World, state: State) -> None:
    one = world.make("one")
    world.run("run", state, inputs=None)
    assert world.collect() == world.of(one)


def test_what_two_runs_share_is_kept_until_neither_needs_it(world: World) -> None:
    shared = world.make("shared")
    alone = world.make("alone")
    world.run("one", "finished", inputs={"policy": shared, "prompts": alone})
    world.run("two", "finished", inputs={"policy": shared})
    assert world.collect() == set()
    shutil.rmtree(world.objects.root / "runs" / "one")
    assert world.collect() == world.of(alone)
    shutil.rmtree(world.objects.root / "runs" / "two")
    assert world.collect() == world.of(shared)


# Attempts, damage, temporary files


def test_attempts_that_were_never_committed_go_when_they_are_old(world: World) -> None:
    kept = world.make("kept")
    base = f"artifacts/demo/{kept.ref.key}"
    lost = world.file(f"{base}/0123456789abcdef/data.bin")
    writing = world.file(f"{base}/fedcba9876543210/data.bin", young=True)
    alone = world.file("artifacts/demo/otherkey/0123456789abcdef/data.bin")
    world.run("run", "finished", inputs={"policy": kept})
    assert world.collect() == {lost, alone}
    assert writing in world.files()


def test_temporary_files_of_killed_writers_go_when_they_are_old(world: World) -> None:
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


def test_no_record_of_a_run_ever_goes(world: World) -> None:
    one = world.make("one")
    world.run("run", "failed", inputs={"policy": one}, records=[{"policy": one}], evaluations={0: one})
    world.collect()
    assert {path for path in world.files() if path.startswith("runs/")} == {
        "runs/run/run.json",
        "runs/run/lease.json",
        "runs/run/iterations/0000.json",
        "runs/run/evaluations/0000.json",
    }


def damage(world: World, manifest: Manifest) -> str:
    """Damage an artifact and have a reader find it. Returns the mark's path."""
    base = f"artifacts/{manifest.ref.stage}/{manifest.ref.key}"
    file = world.objects.root / base / manifest.attempt / "data.bin"
    file.unlink()
    file.write_text("torn")
    with pytest.raises(CorruptArtifact):
        ArtifactStore(world.objects).fetch(manifest.ref)
    return f"{base}/{manifest.attempt}.damaged"


def test_of_a_damaged_artifact_that_was_made_again_the_old_data_and_the_mark_go(world: World) -> None:
    old = world.make("one")
    mark = damage(world, old)
    new = world.make("one")
    world.run("run", "finished", inputs={"policy": new})
    assert world.collect() == (world.of(old) | {mark}) - world.of(new)
    assert ArtifactStore(world.objects).fetch(new.ref).is_dir()


def test_a_needed_artifact_that_is_damaged_stays_marked(world: World) -> None:
    """Without its mark it would pass for whole."""
    one = world.make("one")
    mark = damage(world, one)
    world.run("run", "finished", inputs={"policy": one})
    assert world.collect() == set()
    assert mark in world.files()


def test_a_torn_manifest_goes_with_the_data_that_nothing_names_any_more(world: World) -> None:
    one = world.make("one")
    path = world.objects.root / f"artifacts/demo/{one.ref.key}/manifest.json"
    path.write_text('{"torn')
    world.run("run", "finished", inputs={"policy": one})
    assert world.collect() == world.of(one)


# Checkpoints


@pytest.mark.parametrize(
    ("state", "committed", "kept"),
    [("interrupted", False, True), ("finished", False, False), ("interrupted", True, False)],
)
def test_checkpoints_are_kept_while_their_training_may_go_on(
    world: World, state: State, committed: bool, kept: bool
) -> None:
    base = world.make("base")
    key = Work("policy", 1, {"name": "trained"}, {"parent-0": base.ref}).key
    checkpoint = world.make("step 8", [], stage="checkpoint", policy=key)
    head = world.file(f"checkpoints/{key}/head.json")
    if committed:
        trained = world.make("trained", [base], stage="policy")
        assert trained.ref.key == key
    world.run("run", state, inputs={"policy": base})
    gone = world.collect()
    assert gone & ({head} | world.of(checkpoint)) == (set() if kept else {head} | world.of(checkpoint))


# Age


def test_an_artifact_that_was_committed_lately_is_kept_whole(world: World) -> None:
    one = world.make("one")
    manifest = f"artifacts/demo/{one.ref.key}/manifest.json"
    world.young.add(manifest)
    assert world.collect() == set(), "its data is older than its commit, and needed by it"
    world.young.clear()
    assert world.collect() == world.of(one)


@pytest.mark.parametrize("seconds", [-5 * HOUR, 5 * HOUR])
def test_age_is_counted_by_the_stores_clock(world: World, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store whose clock is hours off: its times and its `now` are off together."""
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


# Deleting


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
    """Files that a standing commit names and that are not there."""
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


def test_deleting_may_be_interrupted_anywhere_and_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = World(tmp_path / "whole" / "store")
    rubbish(whole)
    steps = len(whole.collect())
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
        assert len(world.files()) == len(whole.files())
        assert readable_in_part(world) == []


def test_deleting_twice_from_the_same_list_is_harmless(world: World) -> None:
    world.make("one")
    world.age()
    garbage = find_garbage(world.store, HOUR)
    delete_garbage(world.store, garbage)
    delete_garbage(world.store, garbage)
    assert world.files() == set()


def test_discarding_takes_the_commit_before_the_data(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
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


# Any store


@st.composite
def plans(draw: st.DrawFn) -> tuple[list[list[int]], list[tuple[str, list[int], list[int]]], list[int]]:
    """Artifacts by the numbers of their parents; runs by (state, inputs, recorded); artifacts committed lately."""
    size = draw(st.integers(1, 8))
    parents = [draw(st.lists(st.integers(0, n - 1), max_size=3, unique=True)) if n else [] for n in range(size)]
    some = st.lists(st.integers(0, size - 1), min_size=1, max_size=3, unique=True)
    states = st.sampled_from(["working", "interrupted", "stopped", "failed", "finished"])
    runs = draw(st.lists(st.tuples(states, some, st.one_of(st.just([]), some)), max_size=3))
    return parents, runs, draw(st.lists(st.integers(0, size - 1), max_size=2, unique=True))


def closure(start: Iterable[int], edges: list[set[int]]) -> set[int]:
    found = set(start)
    while more := {following for n in found for following in edges[n]} - found:
        found |= more
    return found


@settings(max_examples=25, deadline=None)
@given(plans())
def test_after_a_collection_everything_that_a_run_refers_to_still_fetches(
    plan: tuple[list[list[int]], list[tuple[str, list[int], list[int]]], list[int]],
) -> None:
    parents, runs, young = plan
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder) / "store")
        made: list[Manifest] = []
        for n, own in enumerate(parents):
            made.append(world.make(f"artifact {n}", [made[m] for m in own]))
        for n, (state, inputs, recorded) in enumerate(runs):
            world.run(
                f"run-{n}",
                state,  # type: ignore[arg-type]
                inputs={str(m): made[m] for m in inputs},
                records=[{str(m): made[m] for m in recorded}] if recorded else [],
            )
        world.young |= {f"artifacts/demo/{made[n].ref.key}/manifest.json" for n in young}

        upwards = [set(own) for own in parents]
        downwards = [{child for child, own in enumerate(parents) if n in own} for n in range(len(parents))]
        needed = {m for _, inputs, recorded in runs for m in (*inputs, *recorded)}
        for state, inputs, recorded in runs:
            if state != "finished":
                needed |= closure(recorded or inputs, downwards)
        kept = closure(needed, upwards)

        gone = world.collect()
        assert gone == world.of(*(made[n] for n in set(range(len(made))) - kept - set(young)))
        fresh = ArtifactStore(world.objects)
        for n in kept | set(young):
            assert (fresh.fetch(made[n].ref) / "data.bin").read_text() == f"data of artifact {n}"
        assert world.collect() == set(), "the second collection found more than the first"


def test_a_reference_to_an_artifact_that_is_gone_does_not_stop_a_collection(world: World) -> None:
    one, two = world.make("one"), world.make("two")
    world.run("run", "finished", inputs={"policy": one, "prompts": replace(two, ref=replace(two.ref, key="0" * 64))})
    assert world.collect() == world.of(two)


def masters_of(world: World, *policies: Manifest) -> set[str]:
    return {path for path in world.of(*policies) if "/master/" in path}


def iterations(*policies: Manifest) -> list[dict[str, Manifest]]:
    """The records of a run that made these policies one after the other."""
    started_from = [{}, *({"started_from": policy} for policy in policies)]
    return [{"policy": policy} | before for policy, before in zip(policies, started_from, strict=False)]


def test_masters_go_when_asked_but_for_each_runs_last(world: World) -> None:
    shared, longer, last = (world.policy(name) for name in ("shared", "longer", "last"))
    world.run("short", "finished", inputs={}, records=iterations(shared))
    world.run("long", "finished", inputs={}, records=iterations(shared, longer, last))
    assert world.collect() == set()
    assert world.collect(masters=True) == masters_of(world, longer)
    fresh = ArtifactStore(world.objects)
    assert (fresh.fetch(longer.ref, "model/*") / "model" / "model.safetensors").read_text() == "model of longer"
    assert fresh.find(Work("policy", 1, {"name": "longer"}, {})) is not None
    with pytest.raises(CorruptArtifact):
        fresh.fetch(longer.ref)
    assert fresh.find(Work("policy", 1, {"name": "longer"}, {})) is None, "its stage would not make it again"


def test_masters_of_a_run_that_goes_on_stay_from_its_last_state_on(world: World) -> None:
    earliest, first, second = (world.policy(name) for name in ("earliest", "first", "second"))
    begun = world.policy("begun", [second])
    world.run("run", "working", inputs={"policy": world.make("origin")}, records=iterations(earliest, first, second))
    assert world.collect(masters=True) == masters_of(world, earliest)
    assert (ArtifactStore(world.objects).fetch(begun.ref) / "master" / "model.safetensors").exists()


def test_masters_stay_while_a_cell_of_a_sweep_may_share_them(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = world.policy("first"), world.policy("second")
    world.run("done", "finished", inputs={}, records=iterations(first, second))
    for run in ("done", "not-begun"):
        SweepRecord(world.objects, "sweep").add(run, {})
    assert world.collect(masters=True) == set()
    print_collection(str(world.objects.root), dry_run=True, grace_hours=1, masters=True)
    assert "masters are all kept: 1 cells of sweeps are not finished, such as not-begun" in capsys.readouterr().out
    world.run("not-begun", "finished", inputs={}, records=iterations(first))
    third = world.policy("third")
    world.run("longer", "finished", inputs={}, records=iterations(second, third))
    assert world.collect(masters=True) == set(), "each is the last one of a run"
