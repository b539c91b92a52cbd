"""Settings of the training stage: which loss, which pairs, how many tokens at once, and what is part of the key."""

from __future__ import annotations

import math
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from optune_core.data.schemas import RESPONSES, write_table
from optune_core.errors import DataError, OutOfMemory, Preempted
from optune_core.losses.best_of_n import BestOfN
from optune_core.process import preemption
from optune_core.stages import policy as stage
from optune_core.storage import ArtifactStore, Ref, Work, open_objects
from optune_core.training import policy
from optune_core.training.spec import Training
from tests.integration.checkpoints.heads import committed
from tests.integration.checkpoints.stages import PAIRS, at_point, checkpoints_of, end, prepare, replay_table, run
from tests.integration.training.trainings import SAMPLES, dataset
from tests.tiny import WDPO


@pytest.mark.slow
def test_best_of_n_resumes_after_sigterm_and_has_no_reference_pass(
    tiny: Path, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch, taken_over: None, tmp_path: Path
) -> None:
    spec = prepare(store, tiny, loss={"type": "best_of_n"}, checkpoint_every="1h")
    with monkeypatch.context() as patch:
        at_point(patch, "policy.forward", 10, end)  # within the third step
        with pytest.raises(Preempted):
            run(store, spec)
    assert committed(store, checkpoints_of(store, spec)) == [3]
    preemption._requested.clear()
    made = run(store, spec)
    other = ArtifactStore(open_objects(str(tmp_path / "other")))
    assert made.ref == run(other, prepare(other, tiny, loss={"type": "best_of_n"})).ref
    assert not (tmp_path / "store" / "artifacts" / "reference").exists()
    assert made.metrics["tokens"] == 2 * sum(len(row["prompt_ids"] + row["chosen_ids"]) for row in dataset(PAIRS))
    assert "weights/mean" not in made.metrics


@pytest.mark.slow
def test_hypo_resumes_after_sigterm_and_trains_on_pairs_and_samples(
    tiny: Path, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch, taken_over: None, tmp_path: Path
) -> None:
    options = {"loss": {"type": "hypo", "beta1": 0.1, "kl_coefficient": 0.3}, "checkpoint_every": "1h"}
    spec = with_samples(store, prepare(store, tiny, **options))
    with monkeypatch.context() as patch:
        at_point(patch, "policy.forward", 10, end)  # within the third step
        with pytest.raises(Preempted):
            run(store, spec)
    preemption._requested.clear()
    made = run(store, spec)
    other = ArtifactStore(open_objects(str(tmp_path / "other")))
    assert made.ref == run(other, with_samples(other, prepare(other, tiny, **options))).ref
    assert (made.metrics["pairs"], made.metrics["online"], made.metrics["steps"]) == (PAIRS, len(SAMPLES), 8)
    first = made.metrics["first"]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)  # of 4 rows, pairs among them
    assert abs(made.metrics["last"].get("kl", 1.0)) > 0  # a step of pairs alone has none
    without = stage.works(store, spec.model_copy(update={"online": []}))[0]
    assert without.key != stage.works(store, spec)[0].key


def with_samples(store: ArtifactStore, spec: stage.Spec) -> stage.Spec:
    """Add SAMPLES as online samples, one shard each."""
    shards = []
    for number, (prompt, response) in enumerate(SAMPLES):
        row = {"prompt_id": f"p{number:02d}", "sample": 0, "prompt_token_ids": prompt, "response_token_ids": response}
        with store.scratch() as folder:
            write_table(pa.Table.from_pylist([row], schema=RESPONSES), RESPONSES, folder / "responses.parquet")
            shards.append(store.commit(Work("responses", 0, {"shard": number}), folder).ref)
    return spec.model_copy(update={"online": shards})


@pytest.mark.slow
def test_the_key_of_a_policy_depends_on_the_loss(tiny: Path, store: ArtifactStore) -> None:
    spec = prepare(store, tiny)
    other = spec.model_copy(update={"training": spec.training.model_copy(update={"loss": BestOfN()})})
    assert stage.works(store, spec)[0].key != stage.works(store, other)[0].key


def test_pairs_below_the_least_reward_gap_are_left_out(tiny: Path, store: ArtifactStore) -> None:
    table = replay_table()
    gaps = [row["chosen_rewards"] - row["rejected_rewards"] for row in dataset(PAIRS)]
    config = Training(loss=WDPO)
    assert policy.training_pairs(table, config).equals(table)
    kept = policy.training_pairs(table, config.model_copy(update={"min_reward_gap": 0.8}))
    assert kept["prompt_id"].to_pylist() == [f"p{row:02d}" for row, gap in enumerate(gaps) if gap >= 0.8]
    assert 0 < kept.num_rows < PAIRS
    with pytest.raises(DataError, match=r"min_reward_gap=9.0 leaves none of 12 pairs: the largest reward gap is 1\."):
        policy.training_pairs(table, config.model_copy(update={"min_reward_gap": 9.0}))


def test_smaller_halves_the_tokens_at_once_and_keeps_the_key(tiny: Path, store: ArtifactStore) -> None:
    spec: stage.Spec | None = prepare(store, tiny, micro_batch_tokens=2000)
    sizes, keys = [], set()
    while spec is not None:
        sizes.append(spec.tokens_at_once)
        keys.add(stage.works(store, spec)[0].key)
        spec = spec.smaller()
    assert sizes == [2000, 1000, 500, 250]
    assert len(keys) == 1


@pytest.mark.slow
def test_training_continues_with_fewer_tokens_at_once_after_running_out_of_memory(
    tiny: Path, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill() -> None:
        raise torch.OutOfMemoryError("tried to allocate 20 GiB")

    spec = prepare(store, tiny, micro_batch_tokens=1000)
    with monkeypatch.context() as patch:
        at_point(patch, "policy.forward", 3, fill)
        with pytest.raises(OutOfMemory, match=r"micro_batch_tokens=1000 .*20 GiB.*gradient_checkpointing.*lora"):
            run(store, spec)
    reduced = spec.model_copy(update={"memory_parts": 40})
    passed = at_point(monkeypatch, "", 0, None)
    made = run(store, reduced)
    assert made.metrics["tokens_at_once"] == 25
    assert passed.count("policy.step") == 4  # from step 2
    assert passed.count("policy.forward") > 8
    assert passed.count("reference.shard") == 1  # its pairs are computed in other company


def test_the_key_of_a_policy_does_not_depend_on_checkpoints_or_tokens_at_once(tiny: Path, store: ArtifactStore) -> None:
    specs = [prepare(store, tiny, checkpoint_every=every) for every in ("0s", "5m")]
    specs.append(specs[0].model_copy(update={"memory_parts": 2}))
    assert len({stage.works(store, spec)[0].key for spec in specs}) == 1
    assert isinstance(specs[0].policy, Ref)
