"""Devices of children: their slices, the number of children, and keys that depend on neither."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optune_core.config import devices, load_config
from optune_core.config.devices import check_devices
from optune_core.errors import ConfigDrift, ConfigError
from optune_core.generation.section import Sampling
from optune_core.process.devices import Replicas, device_names
from optune_core.rewards import ReadyReward
from optune_core.rewards.classifier import ClassifierReward
from optune_core.stages import responses, scores
from optune_core.storage import ArtifactStore, Ledger, Ref, open_objects

ZEPHYR = "configs/zephyr-7b.yaml"
REF = {"stage": "model", "key": "0" * 64, "digest": "1" * 64}


@pytest.mark.parametrize(
    ("visible", "present", "names"),
    [
        (None, 0, []),
        (None, 3, ["0", "1", "2"]),
        ("0,1,2,3", 8, ["0", "1", "2", "3"]),
        (" 6, 2", 8, ["6", "2"]),
        ("GPU-ab,GPU-cd", 8, ["GPU-ab", "GPU-cd"]),
        ("", 8, []),
        ("-1", 8, []),
        ("3,-1,5", 8, ["3"]),
    ],
)
def test_devices_are_those_that_cuda_uses(visible: str | None, present: int, names: list[str]) -> None:
    assert device_names(visible, present) == names


@pytest.mark.parametrize(
    ("visible", "each", "slices"),
    [
        ("0,1,2,3", 2, ["0,1", "2,3"]),
        ("0,1,2,3,4", 2, ["0,1", "2,3"]),
        ("GPU-ab,GPU-cd", 1, ["GPU-ab", "GPU-cd"]),
        (None, 1, ["0", "1", "2"]),
    ],
)
def test_each_child_sees_its_slice(visible: str | None, each: int, slices: list[str]) -> None:
    names = device_names(visible, 3)
    replicas = Replicas("generation.engine", None, each)
    assert [
        replicas.environment(child, names)["CUDA_VISIBLE_DEVICES"] for child in range(replicas.number(len(names)))
    ] == slices


def test_without_devices_one_child_works_unless_more_are_configured() -> None:
    assert Replicas("reward", None, 1).number(0) == 1
    assert Replicas("reward", 3, 1).number(0) == 3
    assert Replicas("reward", 3, 1).environment(2, []) == {}


@given(st.integers(1, 16), st.integers(1, 16), st.none() | st.integers(1, 16))
def test_no_device_is_visible_to_two_children(devices: int, each: int, wanted: int | None) -> None:
    replicas = Replicas("generation.engine", wanted, each)
    names = [str(name) for name in range(devices)]
    if max(wanted or 1, 1) * each > devices:
        with pytest.raises(ConfigError, match=f"but only {devices} are visible"):
            replicas.number(devices)
        return
    slices = [replicas.environment(child, names).popitem()[1].split(",") for child in range(replicas.number(devices))]
    assert all(len(part) == each for part in slices)
    seen = [name for part in slices for name in part]
    assert len(set(seen)) == len(seen)
    assert wanted is not None or devices - len(seen) < each


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["generation.engine.replicas=3"], r"generation\.engine: 3 × 1 devices .* are 3, but only 2 are visible"),
        (["generation.engine.tensor_parallel_size=4"], r"generation\.engine: 1 × 4 devices .* but only 2 are visible"),
        (["reward.replicas=5"], r"reward: 5 × 1 devices"),
    ],
)
def test_more_devices_than_are_visible_are_refused_before_the_run(
    monkeypatch: pytest.MonkeyPatch, overrides: list[str], message: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-ab,GPU-cd")
    check_devices(load_config(ZEPHYR, ["generation.engine.replicas=2", "reward.replicas=2"]))
    with pytest.raises(ConfigError, match=message):
        check_devices(load_config(ZEPHYR, overrides))
    monkeypatch.setattr(devices, "visible_devices", lambda: [])
    check_devices(load_config(ZEPHYR, overrides))


def generation_spec(**engine: Any) -> responses.Spec:
    return responses.Spec(
        sampling=Sampling(engine={"type": "vllm", **engine}, shard_size=10),
        max_prompt_tokens=8,
        seed=0,
        iteration=0,
        policy=REF,
        jobs=[responses.GenerationJob(prompts=REF, file="a", rows=25, samples=2), responses.GenerationJob(**JOB)],
    )


JOB: dict[str, Any] = {"prompts": REF, "file": "b", "rows": 12, "samples": 1}


def scoring_spec(replicas: int | None) -> scores.Spec:
    shards = [REF | {"digest": str(number) * 64} for number in range(5)]
    reward = ReadyReward.of(ClassifierReward(model="any", replicas=replicas), Ref(**REF))
    pairs = scores.ScoringJob(reward=reward, drop_truncated=True, responses=shards[:3])
    held_out = scores.ScoringJob(reward=reward, drop_truncated=False, responses=shards[3:])
    return scores.Spec(jobs=[pairs, held_out])


def test_keys_do_not_depend_on_the_number_of_replicas(tmp_path: Any) -> None:
    store = ArtifactStore(open_objects(str(tmp_path)))
    one, several = (responses.works(store, generation_spec(replicas=replicas)) for replicas in (None, 8))
    assert [work.key for work in one] == [work.key for work in several]
    assert len({work.key for work in one}) == 5
    other = responses.works(store, generation_spec(max_num_seqs=7))
    assert not {work.key for work in other} & {work.key for work in one}
    one, several = (scores.works(store, scoring_spec(replicas)) for replicas in (None, 8))
    assert [work.key for work in one] == [work.key for work in several]


@given(st.lists(st.integers(0, 4), unique=True))
def test_a_share_of_a_stage_has_the_works_of_its_numbers(numbers: list[int]) -> None:
    store: Any = None  # neither reads it
    for stage, spec in ((responses, generation_spec()), (scores, scoring_spec(None))):
        works = stage.works(store, spec)
        assert stage.works(store, stage.share(spec, numbers)) == [works[number] for number in numbers]


def test_changed_replicas_are_no_configuration_drift(tmp_path: Any) -> None:
    ledger = Ledger(open_objects(str(tmp_path)), "run")
    ledger.open(load_config(ZEPHYR, []), {})
    ledger.check(load_config(ZEPHYR, ["generation.engine.replicas=4", "reward.replicas=2"]))
    with pytest.raises(ConfigDrift, match=r"generation\.engine\.max_num_seqs: 512 → 4"):
        ledger.check(load_config(ZEPHYR, ["generation.engine.max_num_seqs=4"]))
