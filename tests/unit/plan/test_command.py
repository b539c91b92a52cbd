"""The command `optune plan`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli.commands import app
from optune_core.config import load_config
from optune_core.errors import ConfigError, CorruptArtifact, OptuneError, StoreError
from optune_core.plan import STAGES, ModelShape, named_device, stage_seconds, workload_of
from optune_core.storage import ArtifactStore, Ledger, Work, open_objects
from tests.unit.plan.workloads import TINY, ZEPHYR

LENGTHS = ("--prompt-tokens", "200", "--response-tokens", "350")


def call(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["plan", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def store(tmp_path: Path) -> str:
    """A store with run `seen` (two iterations that took twice what an A100 would) and run `begun` (none)."""
    url = str(tmp_path / "store")
    artifacts = ArtifactStore(open_objects(url), cache=tmp_path / "cache")
    with artifacts.scratch() as folder:
        (folder / "model").mkdir()
        (folder / "model" / "config.json").write_text(json.dumps(TINY))
        model = artifacts.commit(Work("model", 1, {}), folder).ref
    config = load_config(ZEPHYR, ["training.epochs=2"])
    inputs = {"policy": model, "reward": {"model": model}}
    for run in ("seen", "begun"):
        Ledger(artifacts.objects, run).open(config, inputs)
    shape = ModelShape.from_config(TINY, "tiny")
    work = replace(
        workload_of(config, devices=2, prompts=100, prompt_tokens=30, response_tokens=20),
        policy=shape,
        reward=shape,
        pair_response_tokens=18,
    )
    for t, selected in enumerate((100, 50)):
        seconds = stage_seconds(work, named_device("a100-80gb"), selected)
        record = {
            "iteration": t,
            "metrics": {
                "generated_tokens": selected * 2 * 20,
                "policy": {"pairs": 100, "tokens": 2 * 100 * (30 + 17 + 19)},
                "replay": {"tokens/chosen": 17.0, "tokens/rejected": 19.0},
                "selection": {"prompts": 100, "selected": selected},
            },
            "timing": {stage: 2 * value for stage, value in seconds.items()},
        }
        Ledger(artifacts.objects, "seen").commit_iteration(t, record)
    return url


def test_a_plan_with_a_device_profile_adds_up_and_is_shown_as_a_table() -> None:
    plan = json.loads(call(ZEPHYR, "--devices", "8", *LENGTHS, "--json"))
    assert (plan["device"], plan["prompts"], plan["rho"], plan["fit"]) == ("a100-80gb", 48_000, 0.5, {})
    first, later = sum(plan["first"].values()), sum(plan["later"].values())
    assert plan["seconds"] == pytest.approx(first + 2 * later)
    assert plan["run_speedup"] < plan["iteration_speedup"] <= plan["bound"]
    table = call(ZEPHYR, "--devices", "8", *LENGTHS)
    assert f"{plan['later']['train']:,.0f}" in table
    assert f"{plan['iteration_speedup']:.2f}× an iteration" in table
    assert "not measured" in table
    assert "size unknown" not in table
    assert "reward model some/model: size unknown" in call(ZEPHYR, "reward.model=some/model", *LENGTHS)


def test_overrides_and_lengths_change_the_projected_seconds() -> None:
    fewer = json.loads(call(ZEPHYR, "selection.rho=0.3", *LENGTHS, "--json"))
    default = json.loads(call(ZEPHYR, *LENGTHS, "--json"))
    longest = json.loads(call(ZEPHYR, "--json"))
    assert fewer["seconds"] < default["seconds"] < longest["seconds"]
    assert longest["response_tokens"] == 512


@pytest.mark.parametrize(
    ("arguments", "engines", "reward_models"),
    [
        ((), 8, 8),
        (("generation.engine.tensor_parallel_size=2",), 4, 8),
        (("generation.engine.tensor_parallel_size=3",), 2, 8),
        (("generation.engine.replicas=2", "reward.replicas=4"), 2, 4),
        (("generation.engine.replicas=2", "--engines", "5"), 5, 8),
    ],
)
def test_engines_and_reward_models_take_all_devices_unless_configured(
    arguments: tuple[str, ...], engines: int, reward_models: int
) -> None:
    plan = json.loads(call(ZEPHYR, *arguments, "--devices", "8", *LENGTHS, "--json"))
    assert (plan["engines"], plan["reward_models"]) == (engines, reward_models)
    alone = json.loads(call(ZEPHYR, *LENGTHS, "--json"))
    assert plan["full"]["score"] == pytest.approx(alone["full"]["score"] / reward_models)


def test_a_plan_fitted_to_a_run_scales_the_profile_by_what_the_run_took(store: str) -> None:
    fitting = ("--store", store, "--run", "seen", "--device", "a100-80gb", "--run-devices", "2")
    plan = json.loads(call(ZEPHYR, *fitting, "--json"))
    assert (plan["prompt_tokens"], plan["response_tokens"]) == (30, 20)
    profile = json.loads(call(ZEPHYR, "--prompt-tokens", "30", "--response-tokens", "20", "--json"))
    for stage in STAGES:
        assert plan["fit"][stage]["factor"] == pytest.approx(2.0)
        assert plan["later"][stage] == pytest.approx(2 * profile["later"][stage])
    assert "not measured" not in call(ZEPHYR, *fitting)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("--device", "tpu"), OptuneError, "'tpu' is unknown: choose one of a100-80gb, h100, cpu"),
        (("--run", "seen"), ConfigError, "--run seen needs --device"),
        (("--run", "begun", "--device", "h100"), OptuneError, "'begun' has committed no iteration"),
        (("--run", "none", "--device", "h100"), OptuneError, "has no run 'none'; its runs: begun, seen"),
        (("policy.model=some/model",), ConfigError, "'some/model' is neither.*--parameters"),
        (("prompts.sample=null",), ConfigError, "give it with --prompts"),
        (("--prompt-tokens", "513"), ConfigError, "--prompt-tokens 513 cannot be the mean of lengths up to .*=512"),
        (("--response-tokens", "0"), ConfigError, "--response-tokens 0 cannot be the mean"),
        (("--engines", "2"), ConfigError, "2 engines × 1 devices .* are more than --devices 1"),
        (("generation.engine.replicas=3", "--devices", "2"), ConfigError, "3 engines × 1 devices .* --devices 2"),
        (("generation.engine.tensor_parallel_size=4", "--devices", "2"), ConfigError, "1 engines × 4 devices"),
        (("reward.replicas=3", "--devices", "2"), ConfigError, "reward.replicas=3 is more than --devices 2"),
        (("--parameters", "7e10"), OptuneError, "140.0 GB of weights leave 0.0 GB of 1 × a100-80gb"),
    ],
)
def test_errors_say_what_to_do(store: str, arguments: tuple[str, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(ZEPHYR, *arguments, "--store", store)


def test_one_file_of_an_artifact_is_read_and_verified(store: str) -> None:
    artifacts = ArtifactStore(open_objects(store))
    (model,) = (artifacts.committed("model", key) for key in artifacts.keys("model"))
    assert model is not None
    assert json.loads(artifacts.read(model.ref, "model/config.json")) == TINY
    with pytest.raises(StoreError, match="no file 'other'"):
        artifacts.read(model.ref, "other")
    (Path(artifacts.location(model.ref)) / "model" / "config.json").write_text("{}")
    with pytest.raises(CorruptArtifact, match="other bytes than were committed"):
        artifacts.read(model.ref, "model/config.json")
