"""A training that is interrupted anywhere and resumed gives the policy of an uninterrupted one."""

from __future__ import annotations

import pickle
import signal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from accelerate import PartialState

from optune_core.data.schemas import REFERENCE, read_table
from optune_core.errors import NonFiniteLoss, Preempted
from optune_core.process import preemption
from optune_core.stages import policy as stage
from optune_core.storage import ArtifactStore, Manifest, open_objects
from optune_core.training import policy, reference
from optune_core.training.layout import TokenPairs
from tests.integration.checkpoints.evil import Evil
from tests.integration.checkpoints.heads import committed, head
from tests.integration.checkpoints.stages import PAIRS, at_point, checkpoints_of, child, end, prepare, replay_table, run


@pytest.fixture(scope="module")
def uninterrupted(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    store = ArtifactStore(open_objects(str(tmp_path_factory.mktemp("uninterrupted"))))
    return run(store, prepare(store, tiny, checkpoint_every="1h"))


@pytest.mark.slow
def test_a_finished_training_leaves_no_checkpoint(
    tiny: Path, store: ArtifactStore, uninterrupted: Manifest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    passed = at_point(monkeypatch, "", 0, None)
    spec = prepare(store, tiny)
    made = run(store, spec)
    assert made.ref == uninterrupted.ref  # how often is no part of the key
    assert made.metrics == uninterrupted.metrics
    assert passed.count("checkpoint.committed") == passed.count("checkpoint.written") == 5  # of 6 steps
    assert passed.count("checkpoint.pruned") == 3
    assert passed.count("policy.step") == 6
    assert passed.count("policy.forward") == 24  # a pair each
    checkpoints = checkpoints_of(store, spec)
    assert committed(store, checkpoints) == []
    assert head(store, stage.works(store, spec)[0]) is None
    assert [path for path in (tmp_path / "store" / "artifacts" / "checkpoint").rglob("*") if path.is_file()] == []
    assert list((tmp_path / "store" / "scratch").iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("every", ["0s", "1h"])
def test_a_training_resumed_after_sigterm_gives_the_same_policy(
    tiny: Path,
    store: ArtifactStore,
    uninterrupted: Manifest,
    monkeypatch: pytest.MonkeyPatch,
    taken_over: None,
    every: str,
) -> None:
    spec = prepare(store, tiny, checkpoint_every=every)
    with monkeypatch.context() as patch:
        at_point(patch, "policy.forward", 10, end)  # within the third step
        with pytest.raises(Preempted):
            run(store, spec)
    preemption._requested.clear()
    assert (head(store, stage.works(store, spec)[0]) or [])[:1] == [3]
    assert store.find(stage.works(store, spec)[0]) is None
    passed = at_point(monkeypatch, "", 0, None)
    made = run(store, spec)
    assert passed.count("policy.step") == 3
    assert "reference.shard" not in passed
    assert (made.ref, made.metrics) == (uninterrupted.ref, uninterrupted.metrics)


@pytest.mark.slow
def test_a_training_with_sigterm_in_its_last_step_finishes(
    tiny: Path, store: ArtifactStore, uninterrupted: Manifest, monkeypatch: pytest.MonkeyPatch, taken_over: None
) -> None:
    at_point(monkeypatch, "policy.forward", 24, end)
    assert run(store, prepare(store, tiny)).ref == uninterrupted.ref


@pytest.mark.slow
def test_a_damaged_checkpoint_is_replaced_by_the_one_before_it(
    tiny: Path, store: ArtifactStore, uninterrupted: Manifest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Killed(BaseException):
        pass

    def die() -> None:
        raise Killed

    spec, trace = prepare(store, tiny), tmp_path / "executed"
    with monkeypatch.context() as patch:
        at_point(patch, "policy.step", 5, die)
        with pytest.raises(Killed):
            run(store, spec)
    checkpoints = checkpoints_of(store, spec)
    assert committed(store, checkpoints) == [3, 4]
    newest = store.find(checkpoints.work(4))
    assert newest is not None
    (Path(store.location(newest.ref)) / "optimizer.pt").write_bytes(pickle.dumps(Evil(trace)))
    passed = at_point(monkeypatch, "", 0, None)
    made = run(store, spec)
    assert passed.count("policy.step") == 3  # from step 3
    assert (made.ref, made.metrics) == (uninterrupted.ref, uninterrupted.metrics)
    assert not trace.exists()


@pytest.mark.slow
def test_a_non_finite_gradient_keeps_the_checkpoints_and_commits_no_policy(
    tiny: Path, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = policy.load_master
    spec, backwards = prepare(store, tiny), []

    def explode(gradient: torch.Tensor) -> torch.Tensor:
        backwards.append(1)
        return gradient * torch.inf if len(backwards) == 10 else gradient

    def loaded(policy: Path) -> Any:
        model = load(policy)
        model.model.norm.weight.register_hook(explode)
        return model

    monkeypatch.setattr(policy, "load_master", loaded)
    with pytest.raises(NonFiniteLoss, match=r"norm of the gradient is (inf|nan) at step 2"):
        run(store, spec)
    assert head(store, stage.works(store, spec)[0]) == [2, 1]
    assert store.find(stage.works(store, spec)[0]) is None


def shards_of(store: ArtifactStore, spec: stage.Spec) -> list[Manifest]:
    table = replay_table()
    passing = reference.ReferencePass(store, spec, table, TokenPairs(table), "sdpa", PartialState(cpu=True))
    return [found for shard in range(PAIRS) if (found := store.find(passing.work(shard)))]


@pytest.mark.slow
def test_the_reference_pass_resumes_after_its_committed_shards(
    tiny: Path, store: ArtifactStore, uninterrupted: Manifest, monkeypatch: pytest.MonkeyPatch, taken_over: None
) -> None:
    monkeypatch.setattr(reference, "SHARD_PAIRS", 5)  # complete steps of 4 pairs: shards of 4
    spec = prepare(store, tiny)
    with monkeypatch.context() as patch:
        at_point(patch, "reference.shard", 2, end)
        with pytest.raises(Preempted):
            run(store, spec)
    preemption._requested.clear()
    assert [shard.metrics["pairs"] for shard in shards_of(store, spec)] == [4, 4]
    passed = at_point(monkeypatch, "", 0, None)
    progress: list[tuple[str, int, int]] = []
    stage.run(store, spec, lambda *step: progress.append(step))
    assert passed.count("reference.shard") == 1
    assert [step[1:] for step in progress if step[0] == "reference"] == [(9, 12), (10, 12), (11, 12), (12, 12)]
    tables = [read_table(store.fetch(shard.ref) / "reference.parquet", REFERENCE) for shard in shards_of(store, spec)]
    assert sorted(pa.concat_tables(tables)["prompt_id"].to_pylist()) == replay_table()["prompt_id"].to_pylist()
    assert run(store, spec).ref == uninterrupted.ref


@pytest.mark.slow
def test_a_training_killed_at_every_point_gives_the_same_policy(
    tiny: Path, store: ArtifactStore, uninterrupted: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = ["reference.shard", "policy.forward", "policy.step"]
    points += [f"checkpoint.{what}" for what in ("written", "committed", "pruned")]
    folder = tmp_path / "points"
    folder.mkdir()
    monkeypatch.setenv("OPTUNE_FAILPOINTS", str(folder))
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
    spec = prepare(store, tiny)
    for point in points:
        (folder / "plan").write_text(f"kill {point}\n")
        assert child(spec, store, tmp_path / "child").wait() == -signal.SIGKILL, point
    assert child(spec, store, tmp_path / "child").wait() == 0
    made = store.find(stage.works(store, spec)[0])
    assert made is not None
    assert (made.ref, made.metrics) == (uninterrupted.ref, uninterrupted.metrics)
