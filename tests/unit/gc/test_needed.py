"""Garbage collection keeps what a run refers to or may go on from, and nothing else."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optune_core.console.collect import print_collection
from optune_core.errors import CorruptArtifact
from optune_core.storage import ArtifactStore, Manifest, Work
from optune_core.storage.gc import find_garbage
from optune_core.storage.lease import State
from optune_core.storage.sweeps import SweepRecord
from tests.unit.gc.worlds import HOUR, World


def test_a_store_without_runs_is_all_garbage(world: World) -> None:
    one = world.make("one")
    assert world.collect() == world.of(one)


def test_an_empty_store_has_no_garbage(world: World) -> None:
    garbage = find_garbage(world.store, HOUR)
    assert (garbage.commits, garbage.data, garbage.bytes, garbage.kept_bytes) == ([], [], 0, 0)
    assert world.files() == set(), "looking for garbage left some"


def test_the_records_of_a_finished_run_keep_their_artifacts_and_evaluations(world: World) -> None:
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
def test_the_work_in_progress_of_an_unfinished_run_is_kept(world: World, state: State | None) -> None:
    policy = world.make("policy")
    replay = world.make("replay", [policy])
    trained = world.make("trained", [policy, replay])
    shard = world.make("shard", [trained])
    scored = world.make("scored", [shard])
    tried = world.make("tried", [policy], learning_rate=9)  # of an iteration that is committed
    world.run("run", state, inputs={"policy": policy}, records=[{"replay": replay, "policy": trained}])
    assert world.collect() == world.of(tried)
    assert ArtifactStore(world.objects).fetch(scored.ref).is_dir()


def test_before_the_first_iteration_everything_made_from_the_inputs_is_kept(world: World) -> None:
    policy, other = world.make("policy"), world.make("other")
    world.make("shard", [policy])
    theirs = world.make("theirs", [other])
    world.run("run", "interrupted", inputs={"policy": policy})
    assert world.collect() == world.of(other, theirs)


def test_work_in_progress_is_found_by_the_content_of_its_parents(world: World) -> None:
    """Equal bytes made in two ways are the same parent, so a run uses what was made from either."""
    ours, theirs = world.make("policy", way="ours"), world.make("policy", way="theirs")
    assert ours.ref.digest == theirs.ref.digest and ours.ref.key != theirs.ref.key
    shard = world.make("shard", [theirs])
    assert world.store.find(Work("demo", 1, {"name": "shard"}, {"parent-0": ours.ref})) == shard
    world.run("run", "interrupted", inputs={"policy": ours})
    assert world.collect() == set()


def test_everything_committed_is_kept_while_a_run_is_in_preparation(world: World) -> None:
    world.make("found, but not recorded yet")
    left = world.file("artifacts/demo/key/attempt/data.bin")
    world.run("run", "working", inputs=None)
    assert world.collect() == {left}


@pytest.mark.parametrize("state", ["finished", "failed", "stopped"])
def test_a_run_that_ended_in_preparation_keeps_nothing(world: World, state: State) -> None:
    one = world.make("one")
    world.run("run", state, inputs=None)
    assert world.collect() == world.of(one)


def test_a_shared_artifact_is_kept_until_neither_run_needs_it(world: World) -> None:
    shared = world.make("shared")
    alone = world.make("alone")
    world.run("one", "finished", inputs={"policy": shared, "prompts": alone})
    world.run("two", "finished", inputs={"policy": shared})
    assert world.collect() == set()
    shutil.rmtree(world.objects.root / "runs" / "one")
    assert world.collect() == world.of(alone)
    shutil.rmtree(world.objects.root / "runs" / "two")
    assert world.collect() == world.of(shared)


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


@settings(max_examples=25)
@given(plans())
def test_everything_that_a_run_refers_to_can_be_fetched_after_a_collection(
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
    """Return the records of a run that made these policies one after the other."""
    started_from = [{}, *({"started_from": policy} for policy in policies)]
    return [{"policy": policy} | before for policy, before in zip(policies, started_from, strict=False)]


def test_masters_are_deleted_on_request_except_the_last_of_each_run(world: World) -> None:
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


def test_masters_of_an_unfinished_run_are_kept_from_its_latest_policy_on(world: World) -> None:
    earliest, first, second = (world.policy(name) for name in ("earliest", "first", "second"))
    begun = world.policy("begun", [second])
    world.run("run", "working", inputs={"policy": world.make("origin")}, records=iterations(earliest, first, second))
    assert world.collect(masters=True) == masters_of(world, earliest)
    assert (ArtifactStore(world.objects).fetch(begun.ref) / "master" / "model.safetensors").exists()


def test_masters_are_kept_while_a_cell_of_a_sweep_may_share_them(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = world.policy("first"), world.policy("second")
    world.run("done", "finished", inputs={}, records=iterations(first, second))
    for run in ("done", "not-begun"):
        SweepRecord(world.objects, "sweep").add(run, {})
    assert world.collect(masters=True) == set()
    print_collection(str(world.objects.root), dry_run=True, grace_hours=1, masters=True)
    assert (
        "all masters are kept, since 1 cells of sweeps are not finished, for example not-begun"
        in capsys.readouterr().out
    )
    world.run("not-begun", "finished", inputs={}, records=iterations(first))
    third = world.policy("third")
    world.run("longer", "finished", inputs={}, records=iterations(second, third))
    assert world.collect(masters=True) == set(), "each is the last one of a run"
