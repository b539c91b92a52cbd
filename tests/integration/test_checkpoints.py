"""Checkpoints: exact, never unpickled, by the clock and at SIGTERM, found again whatever happened to the last one."""

from __future__ import annotations

import json
import math
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from accelerate import PartialState
from safetensors.torch import load_file

from optune_core.config.schema import Training
from optune_core.data.schemas import REFERENCE, REPLAY, RESPONSES, read_table, write_table
from optune_core.errors import (
    ConservationError,
    CorruptArtifact,
    DataError,
    NonFiniteLoss,
    OutOfMemory,
    Preempted,
    StoreError,
    TransientError,
)
from optune_core.process import preemption
from optune_core.stages import policy as stage
from optune_core.storage import ArtifactStore, Manifest, Ref, Work, open_objects
from optune_core.training import callbacks, policy, reference
from optune_core.training.checkpoints import FILES, RANDOM, STATE, WEIGHTS, check, restore_random, write
from optune_core.training.layout import Pairs
from optune_core.training.recovery import Checkpoints
from tests.integration.test_training import HYPO, SAMPLES, dataset, losses, train

ROOT = Path(__file__).parents[2]


class Evil:
    """Unpickled, it leaves a file behind."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


@pytest.fixture(autouse=True)
def nobody_asked() -> Iterator[None]:
    """SIGTERM was not sent to this process, and will not have been after the test."""
    preemption._requested.clear()
    yield
    preemption._requested.clear()


# ---------------------------------------------------------------- the format


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["rmsprop", "adamw_torch_fused"])
@pytest.mark.parametrize("lora", [None, {"r": 4}])
@pytest.mark.parametrize(
    ("step", "loss"), [(3, "wdpo"), (4, "wdpo"), (3, "best_of_n"), (3, "hypo")]
)  # in an epoch, between two
def test_training_resumed_equals_an_uninterrupted_one(
    tiny: Path, tmp_path: Path, optimizer: str, lora: dict[str, Any] | None, step: int, loss: str
) -> None:
    rows = dataset(4 if loss == "hypo" else 8)  # and four samples
    options: dict[str, Any] = (HYPO if loss == "hypo" else {"loss": loss}) | {
        "epochs": 3,
        "optimizer": optimizer,
        "lora": lora,
        "learning_rate": 1e-3,
        "schedule": "cosine",
    }
    whole = train(tiny, tmp_path / "whole", rows, **options)
    train(tiny, tmp_path / "cut", rows, save_at=step, **options)
    checkpoint = tmp_path / "cut" / f"checkpoint-{step}"
    resumed = train(tiny, tmp_path / "resumed", rows, resume=str(checkpoint), **options)
    assert len(losses(whole)) == 6
    assert resumed.state.log_history[:-1] == whole.state.log_history[:-1]  # the last is a summary with the clock
    torch.testing.assert_close(resumed.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0)
    assert {path.name for path in checkpoint.iterdir()} == FILES
    if lora:
        assert all("lora_" in name for name in resumed.trained)


def test_random_generators_go_on_from_where_they_were(tmp_path: Path) -> None:
    def draw() -> list[float]:
        return [torch.rand(1).item(), torch.randn(1).item(), random.gauss(0, 1), np.random.rand(), np.random.randn()]

    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.RMSprop(model.parameters())
    model(torch.ones(2)).backward()
    optimizer.step()
    draw()  # an odd number of Gaussians: the generators keep the second of a pair
    trained = {name: parameter.shape for name, parameter in model.named_parameters()}
    write(tmp_path / "checkpoint", model, optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer), trained)
    expected = draw()
    assert draw() != expected
    restore_random(tmp_path / "checkpoint")
    assert draw() == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth", "pytorch_model.bin", "scheduler.pt", "deep/er.bin"])
def test_a_pickle_in_a_checkpoint_is_refused_and_never_run(tiny: Path, tmp_path: Path, name: str) -> None:
    rows = dataset(8)
    cut = train(tiny, tmp_path / "cut", rows, save_at=1)
    checkpoint, trace = tmp_path / "cut" / "checkpoint-1", tmp_path / "executed"
    check(checkpoint, cut.trained)
    (checkpoint / name).parent.mkdir(exist_ok=True)
    (checkpoint / name).write_bytes(pickle.dumps(Evil(trace)))
    with pytest.raises(CorruptArtifact, match=name.partition("/")[0]):
        check(checkpoint, cut.trained)
    # And even a trainer that is sent there does not read it.
    resumed = train(tiny, tmp_path / "resumed", rows, resume=str(checkpoint))
    assert losses(resumed) == losses(train(tiny, tmp_path / "whole", rows))
    assert not trace.exists()
    pickle.loads((checkpoint / name).read_bytes())
    assert trace.exists()  # it would have left its trace


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_gone_on_from_is_refused(tiny: Path, tmp_path: Path) -> None:
    cut = train(tiny, tmp_path / "cut", dataset(4), save_at=1, epochs=2)
    whole = tmp_path / "cut" / "checkpoint-1"
    for number, (spoil, complaint) in enumerate(
        [
            (lambda folder: (folder / STATE).unlink(), "'state.json' is missing"),
            (lambda folder: (folder / STATE).write_text("{"), "is not JSON"),
            (lambda folder: (folder / STATE).write_text("{}"), "instead of"),
            (lambda folder: (folder / WEIGHTS).write_bytes(pickle.dumps({})), "not in the safetensors format"),
        ]
    ):
        folder = shutil.copytree(whole, tmp_path / str(number))
        spoil(folder)
        with pytest.raises(CorruptArtifact, match=complaint):
            check(folder, cut.trained)
    with pytest.raises(CorruptArtifact, match=r"another model: 'model\.norm\.weight'"):
        check(whole, cut.trained | {"model.norm.weight": torch.Size([3])})


# ---------------------------------------------------------------- the clock


class Recorder:
    def __init__(self) -> None:
        self.steps: list[int] = []

    def commit(self, step: int, folder: Path) -> None:
        self.steps.append(step)

    def wait(self) -> None:
        self.steps.append(-1)


def steps_saved(monkeypatch: pytest.MonkeyPatch, every: float, seconds_a_step: float, steps: int) -> list[int]:
    from types import SimpleNamespace

    clock = [100.0]
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: clock[0])
    recorder = Recorder()
    callback = callbacks.SaveByTheClock(every, recorder)
    args, state = SimpleNamespace(output_dir="."), SimpleNamespace(max_steps=steps, is_world_process_zero=True)
    callback.on_train_begin(args, state, None)
    for state.global_step in range(1, steps + 1):
        clock[0] += seconds_a_step
        control = SimpleNamespace(should_save=False)
        callback.on_step_end(args, state, control)
        if control.should_save:
            callback.on_save(args, state, control)
    return recorder.steps


def test_checkpoints_are_due_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    assert steps_saved(monkeypatch, every=25, seconds_a_step=10, steps=10) == [3, 6, 9]
    assert steps_saved(monkeypatch, every=5, seconds_a_step=10, steps=4) == [1, 2, 3]  # the policy is the fourth
    assert steps_saved(monkeypatch, every=0, seconds_a_step=0, steps=3) == [1, 2]
    assert steps_saved(monkeypatch, every=300, seconds_a_step=1, steps=20) == []


def test_a_request_saves_at_once_waits_for_the_commit_and_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: list[int] = []
    monkeypatch.setattr(Recorder, "wait", lambda self: recorded.extend([*self.steps, -1]))
    monkeypatch.setattr(callbacks, "reach", lambda point: preemption._requested.set())
    with pytest.raises(Preempted):
        steps_saved(monkeypatch, every=300, seconds_a_step=1, steps=5)
    assert recorded == [1, -1]


@pytest.mark.parametrize(("text", "seconds"), [("5m", 300), ("30s", 30), ("1h", 3600), ("0s", 0)])
def test_durations(text: str, seconds: int) -> None:
    assert Training(beta1=1, beta2=0, checkpoint_every=text).checkpoint_seconds == seconds


@pytest.mark.parametrize("text", ["5", 300, "5 m", "-1s", "1.5h", "", "m", None])
def test_what_is_no_duration_is_refused_with_an_example(text: Any) -> None:
    with pytest.raises(ValueError, match=r"is not a duration: write a whole number and its unit, such as 30s"):
        Training(beta1=1, beta2=0, checkpoint_every=text)


# ---------------------------------------------------------------- head, background commit, pruning


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(open_objects(str(tmp_path / "store")))


POLICY = Work("policy", 0, {"of": "a test"})


def written(folder: Path, step: int) -> Path:
    target = folder / f"checkpoint-{step}"
    target.mkdir(parents=True)
    (target / "state").write_text(f"step {step}")
    return target


def head(store: ArtifactStore, policy: Work = POLICY) -> list[int] | None:
    body = store.objects.read(f"checkpoints/{policy.key}/head.json")
    return None if body is None else json.loads(body)["steps"]


def standing(store: ArtifactStore, checkpoints: Checkpoints, steps: range = range(40)) -> list[int]:
    return [step for step in steps if store.find(checkpoints.work(step)) is not None]


def commit(checkpoints: Checkpoints, folder: Path, *steps: int) -> None:
    for step in steps:
        checkpoints.commit(step, written(folder, step))
    checkpoints.wait()


def accept(folder: Path) -> None:
    """A `check` with no complaint."""


def test_the_last_two_are_kept_and_found_and_leave_no_local_copy(store: ArtifactStore, tmp_path: Path) -> None:
    with Checkpoints(store, POLICY) as checkpoints:
        assert checkpoints.newest(accept) is None
        commit(checkpoints, tmp_path / "scratch", 2, 5, 9)
        assert head(store) == [9, 5]
        assert standing(store, checkpoints) == [5, 9]
        assert list((tmp_path / "scratch").iterdir()) == []
        assert len(list((tmp_path / "store" / "artifacts" / "checkpoint").rglob("state"))) == 2
    found = Checkpoints(store, POLICY).newest(accept)
    assert found is not None
    step, folder = found
    assert (step, (folder / "state").read_text()) == (9, "step 9")


def test_a_slower_runner_never_moves_the_head_back(store: ArtifactStore, tmp_path: Path) -> None:
    with Checkpoints(store, POLICY) as fast, Checkpoints(store, POLICY) as slow:
        commit(fast, tmp_path / "fast", 10, 20)
        commit(slow, tmp_path / "slow", 5, 10, 15, 20)
        assert head(store) == [20, 10]
        assert standing(store, fast) == [10, 20]
        commit(slow, tmp_path / "slow", 25)
        assert head(store) == [25, 20]
        assert standing(store, fast) == [20, 25]


def test_racing_runners_lose_no_step_of_the_head(store: ArtifactStore, tmp_path: Path) -> None:
    def runner(number: int) -> None:
        with Checkpoints(store, POLICY) as checkpoints:
            commit(checkpoints, tmp_path / str(number), *range(number, 40, 4))

    threads = [threading.Thread(target=runner, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    steps = head(store)
    assert steps is not None and steps[0] == 39
    found = Checkpoints(store, POLICY).newest(accept)
    assert found is not None and found[0] == 39


@pytest.mark.parametrize("harm", ["bytes", "file", "manifest", "discarded"])
def test_damage_to_the_newest_falls_back_to_the_one_before(
    store: ArtifactStore, tmp_path: Path, caplog: pytest.LogCaptureFixture, harm: str
) -> None:
    with Checkpoints(store, POLICY) as checkpoints:
        commit(checkpoints, tmp_path / "scratch", 3, 6)
        newest = store.find(checkpoints.work(6))
        assert newest is not None
        file = Path(store.location(newest.ref)) / "state"
        if harm == "bytes":
            file.write_text("step 7")
        elif harm == "file":
            file.unlink()
        elif harm == "manifest":
            (file.parents[1] / "manifest.json").write_text("{")
        else:
            store.discard(newest.ref)
        found = checkpoints.newest(accept)
        assert found is not None and found[0] == 3
        assert "checkpoint of step 6 is not used" in caplog.text
        assert "continues from the checkpoint of step 3" in caplog.text
        assert head(store) == [3]
        commit(checkpoints, tmp_path / "scratch", 6)  # the step that was damaged comes again
        found = checkpoints.newest(accept)
        assert found is not None and found[0] == 6
        assert (found[1] / "state").read_text() == "step 6"
        assert head(store) == [6, 3]


def test_with_no_usable_checkpoint_training_starts_from_the_beginning_and_is_protected_anew(
    store: ArtifactStore, tmp_path: Path
) -> None:
    def refuse(folder: Path) -> None:
        raise CorruptArtifact("no")

    with Checkpoints(store, POLICY) as checkpoints:
        commit(checkpoints, tmp_path / "scratch", 30, 36)
        assert checkpoints.newest(refuse) is None
        assert standing(store, checkpoints) == []
        commit(checkpoints, tmp_path / "scratch", 1)
        assert head(store) == [1]


def test_commits_run_in_the_background_one_at_a_time(
    store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, begun, running = threading.Event(), threading.Event(), []
    real = ArtifactStore.commit

    def slow(self: ArtifactStore, *args: Any, **kwargs: Any) -> Manifest:
        running.append(threading.current_thread().name)
        begun.set()
        assert release.wait(30)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(ArtifactStore, "commit", slow)
    with Checkpoints(store, POLICY) as checkpoints:
        checkpoints.commit(1, written(tmp_path / "scratch", 1))  # does not wait
        assert begun.wait(30)
        assert head(store) is None
        waiting = threading.Thread(target=checkpoints.commit, args=(2, written(tmp_path / "scratch", 2)))
        waiting.start()
        time.sleep(0.2)
        assert waiting.is_alive() and len(running) == 1
        release.set()
        waiting.join(30)
    assert head(store) == [2, 1]
    assert all(name.startswith("checkpoint") for name in running)


def test_an_unreachable_store_costs_a_checkpoint_and_a_refusing_one_the_training(
    store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(error: Exception) -> None:
        def commit(self: ArtifactStore, *args: Any, **kwargs: Any) -> Manifest:
            raise error

        monkeypatch.setattr(ArtifactStore, "commit", commit)

    with Checkpoints(store, POLICY) as checkpoints:
        fail(TransientError("503"))
        commit(checkpoints, tmp_path / "scratch", 1)
        assert "a checkpoint was not committed: 503" in caplog.text
        fail(StoreError("access refused"))
        with pytest.raises(StoreError, match="access refused"):
            commit(checkpoints, tmp_path / "scratch", 2)
    assert head(store) is None
    assert list((tmp_path / "scratch").iterdir()) == []


# ---------------------------------------------------------------- the stage


PAIRS = 12


def replay_table() -> pa.Table:
    rows = dataset(PAIRS)
    return pa.table(
        {
            "prompt_id": [f"p{number:02d}" for number in range(PAIRS)],
            "prompt": ["a question"] * PAIRS,
            "messages": [[{"role": "user", "content": "a question"}]] * PAIRS,
            "prompt_token_ids": [row["prompt_ids"] for row in rows],
            "chosen": ["yes"] * PAIRS,
            "chosen_token_ids": [row["chosen_ids"] for row in rows],
            "chosen_reward": [row["chosen_rewards"] for row in rows],
            "rejected": ["no"] * PAIRS,
            "rejected_token_ids": [row["rejected_ids"] for row in rows],
            "rejected_reward": [row["rejected_rewards"] for row in rows],
            "chosen_policy_logps": pa.nulls(PAIRS, pa.float64()),
            "rejected_policy_logps": pa.nulls(PAIRS, pa.float64()),
            "generated_at": [0] * PAIRS,
            "sampled_from": [0] * PAIRS,
            "status": ["regenerated"] * PAIRS,
            "reason": [None] * PAIRS,
            "responses_scored": [2] * PAIRS,
            "reward_mean": [(row["chosen_rewards"] + row["rejected_rewards"]) / 2 for row in rows],
            "reward_variance": [((row["chosen_rewards"] - row["rejected_rewards"]) / 2) ** 2 for row in rows],
            "regenerations": [0] * PAIRS,
            "gain_mean": pa.nulls(PAIRS, pa.float64()),
        },
        schema=REPLAY,
    )


def prepare(store: ArtifactStore, tiny: Path, **training: Any) -> stage.Spec:
    with store.scratch() as folder:
        shutil.copytree(tiny / "policy", folder / "model")
        policy = store.commit(Work("model", 0, {}), folder).ref.to_json()
    with store.scratch() as folder:
        write_table(replay_table(), REPLAY, folder / "replay.parquet")
        replay = store.commit(Work("replay", 0, {}), folder).ref.to_json()
    options = {"beta1": 0.1, "beta2": 1.0, "batch_size": 4, "micro_batch_tokens": 1, "precision": "float32"}
    options |= {"learning_rate": 1e-3, "epochs": 2, "checkpoint_every": "0s"} | training
    return stage.Spec(training=Training(**options), seed=1, iteration=0, policy=policy, initial=policy, replay=replay)


def run(store: ArtifactStore, spec: stage.Spec) -> Manifest:
    stage.run(store, spec, lambda what, done, total: None)
    found = store.find(stage.works(store, spec)[0])
    assert found is not None
    return found


def checkpoints_of(store: ArtifactStore, spec: stage.Spec) -> Checkpoints:
    return Checkpoints(store, stage.works(store, spec)[0])


def at_point(monkeypatch: pytest.MonkeyPatch, point: str, pass_number: int, action: Any) -> list[str]:
    """Run an action when a failpoint of training is passed for the n-th time. Returns all that are passed."""
    from optune_core.training import recovery, trainer

    passed: list[str] = []

    def reach(name: str) -> None:
        passed.append(name)
        if name == point and passed.count(point) == pass_number:
            action()

    for module in (callbacks, recovery, trainer, reference):
        monkeypatch.setattr(module, "reach", reach)
    return passed


def end() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def taken_over() -> Iterator[None]:
    """SIGTERM as a stage's process takes it, without the timer that would end the tests."""
    before = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preemption.threading.Timer, "start", lambda self: None)
        preemption.install()
        yield
    signal.signal(signal.SIGTERM, before)


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
    assert standing(store, checkpoints) == []
    assert head(store, stage.works(store, spec)[0]) is None
    assert [path for path in (tmp_path / "store" / "artifacts" / "checkpoint").rglob("*") if path.is_file()] == []
    assert list((tmp_path / "store" / "scratch").iterdir()) == []


@pytest.mark.slow
def test_best_of_n_survives_sigterm_and_has_no_reference_pass(
    tiny: Path, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch, taken_over: None, tmp_path: Path
) -> None:
    spec = prepare(store, tiny, loss="best_of_n", beta1=None, beta2=None, checkpoint_every="1h")
    with monkeypatch.context() as patch:
        at_point(patch, "policy.forward", 10, end)  # within the third step
        with pytest.raises(Preempted):
            run(store, spec)
    assert standing(store, checkpoints_of(store, spec)) == [3]
    preemption._requested.clear()
    made = run(store, spec)
    other = ArtifactStore(open_objects(str(tmp_path / "other")))
    assert made.ref == run(other, prepare(other, tiny, loss="best_of_n", beta1=None, beta2=None)).ref
    assert not (tmp_path / "store" / "artifacts" / "reference").exists()
    assert made.metrics["tokens"] == 2 * sum(len(row["prompt_ids"] + row["chosen_ids"]) for row in dataset(PAIRS))
    assert "weights/mean" not in made.metrics


@pytest.mark.slow
def test_hypo_survives_sigterm_and_trains_on_pairs_and_samples(
    tiny: Path, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch, taken_over: None, tmp_path: Path
) -> None:
    options = {"loss": "hypo", "kl_coefficient": 0.3, "beta2": None, "checkpoint_every": "1h"}
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
    """The same with SAMPLES as online samples, a shard each."""
    shards = []
    for number, (prompt, response) in enumerate(SAMPLES):
        row = {"prompt_id": f"p{number:02d}", "sample": 0, "prompt_token_ids": prompt, "response_token_ids": response}
        with store.scratch() as folder:
            write_table(pa.Table.from_pylist([row], schema=RESPONSES), RESPONSES, folder / "responses.parquet")
            shards.append(store.commit(Work("responses", 0, {"shard": number}), folder).ref.to_json())
    return spec.model_copy(update={"online": shards})


@pytest.mark.slow
def test_the_loss_is_part_of_a_policys_key(tiny: Path, store: ArtifactStore) -> None:
    spec = prepare(store, tiny)
    other = spec.model_copy(update={"training": spec.training.model_copy(update={"loss": "best_of_n"})})
    assert stage.works(store, spec)[0].key != stage.works(store, other)[0].key


@pytest.mark.slow
@pytest.mark.parametrize("every", ["0s", "1h"])
def test_sigterm_saves_and_leaves_and_the_result_is_the_same(
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
def test_sigterm_in_the_last_step_finishes(
    tiny: Path, store: ArtifactStore, uninterrupted: Manifest, monkeypatch: pytest.MonkeyPatch, taken_over: None
) -> None:
    at_point(monkeypatch, "policy.forward", 24, end)
    assert run(store, prepare(store, tiny)).ref == uninterrupted.ref


@pytest.mark.slow
def test_damaged_checkpoints_cost_time_and_nothing_else(
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
    assert standing(store, checkpoints) == [3, 4]
    newest = store.find(checkpoints.work(4))
    assert newest is not None
    (Path(store.location(newest.ref)) / "optimizer.pt").write_bytes(pickle.dumps(Evil(trace)))
    passed = at_point(monkeypatch, "", 0, None)
    made = run(store, spec)
    assert passed.count("policy.step") == 3  # from step 3
    assert (made.ref, made.metrics) == (uninterrupted.ref, uninterrupted.metrics)
    assert not trace.exists()


@pytest.mark.slow
def test_a_non_finite_gradient_leaves_the_last_checkpoint(
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


# ---------------------------------------------------------------- the reference pass


def shards_of(store: ArtifactStore, spec: stage.Spec) -> list[Manifest]:
    table = replay_table()
    passing = reference.ReferencePass(store, spec, table, Pairs(table), "sdpa", PartialState(cpu=True))
    return [found for shard in range(PAIRS) if (found := store.find(passing.work(shard)))]


@pytest.mark.slow
def test_the_reference_pass_is_committed_by_shard(
    tiny: Path, store: ArtifactStore, uninterrupted: Manifest, monkeypatch: pytest.MonkeyPatch, taken_over: None
) -> None:
    monkeypatch.setattr(reference, "SHARD_PAIRS", 5)  # whole steps of 4: shards of 4
    spec = prepare(store, tiny)
    with monkeypatch.context() as patch:
        at_point(patch, "reference.shard", 2, end)
        with pytest.raises(Preempted):
            run(store, spec)
    preemption._requested.clear()
    assert [shard.metrics["pairs"] for shard in shards_of(store, spec)] == [4, 4]
    passed = at_point(monkeypatch, "", 0, None)
    progress: list[tuple[str, int, int]] = []
    stage.run(store, spec, lambda *said: progress.append(said))
    assert passed.count("reference.shard") == 1
    assert [said[1:] for said in progress if said[0] == "reference"] == [(9, 12), (10, 12), (11, 12), (12, 12)]
    tables = [read_table(store.fetch(shard.ref) / "reference.parquet", REFERENCE) for shard in shards_of(store, spec)]
    assert sorted(pa.concat_tables(tables)["prompt_id"].to_pylist()) == replay_table()["prompt_id"].to_pylist()
    assert run(store, spec).ref == uninterrupted.ref


def test_assembly_wants_every_pair_exactly_once() -> None:
    ids = ["a", "b", "c"]
    first = reference.shard_table(ids, {2: (1.0, 2.0), 0: (3.0, 4.0)})
    second = reference.shard_table(ids, {1: (5.0, 6.0)})
    assert reference.assemble([first, second], ids) == [(3.0, 4.0), (5.0, 6.0), (1.0, 2.0)]
    for wrong in ([first], [first, second, second], [first, reference.shard_table(["x"], {0: (0.0, 0.0)})]):
        with pytest.raises(ConservationError, match="match one to one"):
            reference.assemble(wrong, ids)


@pytest.mark.slow
def test_where_the_reference_is_the_initial_policy_unchanged_pairs_are_not_computed_again(
    tiny: Path, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepare(store, tiny, reference="initial")
    policy_1 = run(store, first)
    fresh = pa.array([1 if row % 3 == 0 else 0 for row in range(PAIRS)], pa.int32())
    table = replay_table()
    changed = table.set_column(table.column_names.index("generated_at"), "generated_at", fresh)
    with store.scratch() as folder:
        write_table(changed, REPLAY, folder / "replay.parquet")
        replay = store.commit(Work("replay", 0, {"iteration": 1}), folder).ref.to_json()
    second = first.model_copy(update={"iteration": 1, "policy": policy_1.ref.to_json(), "replay": replay})
    computed = []
    real = reference.reference_logps

    def counting(*args: Any) -> Any:
        computed.append(args[3].rows)
        return real(*args)

    monkeypatch.setattr(reference, "reference_logps", counting)
    policy_2 = run(store, second)
    assert sorted(row for rows in computed for row in rows) == list(range(0, PAIRS, 3))
    files = [store.fetch(made.ref) / reference.FILE for made in (policy_1, policy_2)]
    one, two = [
        dict(zip(t["prompt_id"].to_pylist(), t["reference_chosen_logps"].to_pylist(), strict=True))
        for t in (read_table(file, REFERENCE) for file in files)
    ]
    assert one == pytest.approx(two, rel=1e-6)  # the pairs are the same here, and so is π_0
    assert policy_1.metrics["first"]["rewards/margins"] == pytest.approx(0, abs=1e-6)
    assert abs(policy_2.metrics["first"]["rewards/margins"]) > 1e-3


@pytest.mark.slow
def test_the_engine_s_log_probabilities_stand_in_for_computed_ones_of_fresh_pairs(
    tiny: Path, store: ArtifactStore
) -> None:
    table = replay_table()
    of_engine = {"chosen_policy_logps": -5.0, "rejected_policy_logps": -6.0}
    for name, value in of_engine.items():
        values = pa.array([None if row == 3 else value for row in range(PAIRS)], pa.float64())
        table = table.set_column(table.column_names.index(name), name, values)
    sampled_from = pa.array([-1 if row == 4 else 0 for row in range(PAIRS)], pa.int32())
    table = table.set_column(table.column_names.index("sampled_from"), "sampled_from", sampled_from)
    for wanted in ("computed", "engine"):
        spec = prepare(store, tiny, reference_logps=wanted)
        passing = reference.ReferencePass(store, spec, table, Pairs(table), "sdpa", PartialState(cpu=True))
        expected = {} if wanted == "computed" else dict.fromkeys([0, 1, 2, *range(5, PAIRS)], (-5.0, -6.0))
        assert passing._of_engine() == expected


# ---------------------------------------------------------------- which pairs


def test_pairs_of_a_small_reward_gap_can_be_left_out(tiny: Path, store: ArtifactStore) -> None:
    table = replay_table()
    gaps = [row["chosen_rewards"] - row["rejected_rewards"] for row in dataset(PAIRS)]
    config = Training(beta1=0.1, beta2=1.0)
    assert policy.training_pairs(table, config).equals(table)
    kept = policy.training_pairs(table, config.model_copy(update={"min_reward_gap": 0.8}))
    assert kept["prompt_id"].to_pylist() == [f"p{row:02d}" for row, gap in enumerate(gaps) if gap >= 0.8]
    assert 0 < kept.num_rows < PAIRS
    with pytest.raises(DataError, match=r"min_reward_gap=9.0 leaves none of 12 pairs: the largest reward gap is 1\."):
        policy.training_pairs(table, config.model_copy(update={"min_reward_gap": 9.0}))


# ---------------------------------------------------------------- too little memory


def test_smaller_halves_the_tokens_and_keeps_the_key(tiny: Path, store: ArtifactStore) -> None:
    spec: stage.Spec | None = prepare(store, tiny, micro_batch_tokens=2000)
    sizes, keys = [], set()
    while spec is not None:
        sizes.append(spec.tokens_at_once)
        keys.add(stage.works(store, spec)[0].key)
        spec = stage.smaller(spec)
    assert sizes == [2000, 1000, 500, 250]
    assert len(keys) == 1


@pytest.mark.slow
def test_out_of_memory_names_the_settings_and_fewer_tokens_go_on_from_the_checkpoint(
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


# ---------------------------------------------------------------- processes


def child(spec: stage.Spec, store: ArtifactStore, folder: Path, *launcher: str) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    (folder / "spec.json").write_text(spec.model_dump_json())
    command = [sys.executable, *launcher, "-m", "optune_core.stages.worker", "policy"]
    return subprocess.Popen(
        [*command, str(folder / "spec.json"), store.objects.url],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )


def messages(lines: Any) -> Iterator[dict[str, Any]]:
    return (json.loads(line) for line in lines)


@pytest.mark.slow
def test_a_process_that_is_told_to_end_ends_in_time_with_a_checkpoint(
    tiny: Path, store: ArtifactStore, tmp_path: Path
) -> None:
    spec = prepare(store, tiny, epochs=300, checkpoint_every="1h")
    process = child(spec, store, tmp_path / "child")
    assert process.stdout is not None
    for message in messages(process.stdout):
        if message.get("progress", [""])[0] == "train" and message["progress"][1] > 5:
            break
    process.send_signal(signal.SIGTERM)
    asked = time.monotonic()
    last = list(messages(process.stdout))[-1]
    assert process.wait() == preemption.EXIT_STATUS
    assert time.monotonic() - asked < preemption.GRACE_SECONDS
    assert last["error"]["type"] == "Preempted"
    (step,) = head(store, stage.works(store, spec)[0]) or []
    assert 5 < step < 900
    found = Checkpoints(store, stage.works(store, spec)[0]).newest(accept)
    assert found is not None and found[0] == step


@pytest.mark.slow
def test_killed_at_every_point_of_training_the_result_is_the_same(
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


@pytest.mark.slow
def test_two_processes_agree_resume_and_equal_an_uninterrupted_run_of_theirs(
    tiny: Path, store: ArtifactStore, tmp_path: Path
) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    whole = ArtifactStore(open_objects(str(tmp_path / "whole")))
    spec = prepare(whole, tiny, checkpoint_every="1h")
    process = child(spec, whole, tmp_path / "first", *launcher)
    assert list(messages(process.stdout))[-1] == {"done": True}
    expected = whole.find(stage.works(whole, spec)[0])
    assert expected is not None

    points = tmp_path / "points"
    points.mkdir()
    (points / "plan").write_text("term policy.step\n")
    spec = prepare(store, tiny, checkpoint_every="1h")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPTUNE_FAILPOINTS", str(points))
        process = child(spec, store, tmp_path / "second", *launcher)
        assert list(messages(process.stdout))[-1]["error"]["type"] == "Preempted"
        process.wait()
    assert head(store, stage.works(store, spec)[0]) == [1]
    saved = checkpoints_of(store, spec).newest(accept)
    assert saved is not None
    assert set(load_file(saved[1] / RANDOM)) == {"0/cpu", "1/cpu"}  # of both
    process = child(spec, store, tmp_path / "third", *launcher)
    assert list(messages(process.stdout))[-1] == {"done": True}
    made = store.find(stage.works(store, spec)[0])
    assert made is not None
    assert (made.ref, made.metrics) == (expected.ref, expected.metrics)


SHARDED = """
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM

from optune_core.training import checkpoints

model_folder, folder = Path(sys.argv[1]), Path(sys.argv[2])
state = PartialState(cpu=True)
assert state.num_processes == 2


def make(seed):
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    trained = {name: p.shape for name, p in model.named_parameters() if p.requires_grad}
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    return model, optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer), trained


def step(model, optimizer, schedule, inputs):
    model(input_ids=inputs, labels=inputs).loss.backward()
    optimizer.step()
    schedule.step()
    optimizer.zero_grad()


batches = torch.randint(3, 300, (3, 2, 8), generator=torch.Generator().manual_seed(state.process_index))
model, optimizer, schedule, trained = make(0)
step(model, optimizer, schedule, batches[0])
checkpoints.write(folder, model, optimizer, schedule, trained)
state.wait_for_everyone()
again, its_optimizer, its_schedule, _ = make(1)
checkpoints.restore(folder, again, its_optimizer, its_schedule)
for batch in batches[1:]:
    step(model, optimizer, schedule, batch)
    step(again, its_optimizer, its_schedule, batch)
for (name, one), (_, other) in zip(model.named_parameters(), again.named_parameters(), strict=True):
    assert type(one.data).__name__ == "DTensor" and one.to_local().numel() < one.numel()
    assert torch.equal(one.to_local(), other.to_local()), name
"""


@pytest.mark.slow
def test_a_sharded_model_is_written_whole_and_restored_exactly(tiny: Path, tmp_path: Path) -> None:
    script, folder = tmp_path / "sharded.py", tmp_path / "checkpoint"
    script.write_text(SHARDED)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run(
        [*launcher, str(script), str(tiny / "policy"), str(folder)],
        check=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
    )
    weights = load_file(folder / WEIGHTS)
    assert weights["model.embed_tokens.weight"].shape == (320, 64)
    assert "lm_head.weight" not in weights  # tied
    assert {path.name for path in folder.iterdir()} == FILES - {"trainer_state.json"}


def test_refs_of_a_policy_do_not_depend_on_checkpoints_or_parts(tiny: Path, store: ArtifactStore) -> None:
    specs = [prepare(store, tiny, checkpoint_every=every) for every in ("0s", "5m")]
    specs.append(specs[0].model_copy(update={"memory_parts": 2}))
    assert len({stage.works(store, spec)[0].key for spec in specs}) == 1
    assert isinstance(Ref.from_json(specs[0].policy), Ref)
