"""Complete runs of the tiny model: what an iteration does, what runs share, what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from optune_core.data.schemas import PROMPTS, REPLAY, RESPONSES, read_table
from optune_core.selection.registry import SELECTORS
from optune_core.storage import ArtifactStore, Ledger, open_objects
from tests.tiny import WDPO, write_config

pytestmark = pytest.mark.slow

VLLM = {"engine": {"type": "vllm", "dtype": "float32", "enforce_eager": True, "cpu_kv_cache_gib": 1}}


def run(config: Path, store: str, **kwargs: Any) -> dict[str, Any]:
    from flows.run import optune

    return optune(str(config), store=store, **kwargs)


def records(store: str, run_name: str) -> list[dict[str, Any]]:
    return Ledger(open_objects(store), run_name).iterations()


def facts(store: str, run_name: str) -> list[Any]:
    """Return the records of a run without their times: what must be equal for equal runs."""
    return [{name: value for name, value in record.items() if name != "timing"} for record in records(store, run_name)]


def replay(store: str, record: dict[str, Any]) -> list[dict[str, Any]]:
    folder = ArtifactStore(open_objects(store)).fetch(record["artifacts"]["replay"])
    return read_table(folder / "replay.parquet", REPLAY).to_pylist()


@pytest.fixture(scope="module")
def vllm_run(tiny: Path, prefect_server: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """Run two iterations with the real vLLM on the local disk."""
    store = str(tmp_path_factory.mktemp("local") / "store")
    config = write_config(tiny, name="vllm", generation=VLLM)
    return store, run(config, store)


def test_each_iteration_regenerates_exactly_the_selected_prompts(vllm_run: tuple[str, dict[str, Any]]) -> None:
    store, summary = vllm_run
    objects = ArtifactStore(open_objects(store))
    for t, (row, record) in enumerate(zip(summary["iterations"], records(store, "vllm"), strict=True)):
        selected = 12 if t == 0 else 6
        table = replay(store, record)
        assert record["metrics"]["selection"] == {"prompts": 12, "selected": selected}
        assert row["regenerated"] + row["kept"] + row["unpaired"] + row["reused"] == len(table) == 12
        assert row["reused"] == 12 - selected
        assert len({r["prompt_id"] for r in table}) == 12
        chosen = read_table(objects.fetch(record["artifacts"]["selection"]) / "selection.parquet", PROMPTS)
        touched = {r["prompt_id"] for r in table if r["status"] != "reused"}
        assert touched == set(chosen["prompt_id"].to_pylist())


def test_selected_prompts_had_the_lowest_chosen_rewards(vllm_run: tuple[str, dict[str, Any]]) -> None:
    store, _ = vllm_run
    before, after = (replay(store, record) for record in records(store, "vllm"))
    reward = {r["prompt_id"]: -math.inf if r["chosen_reward"] is None else r["chosen_reward"] for r in before}
    selected = {r["prompt_id"] for r in after if r["status"] != "reused"}
    assert max(reward[i] for i in selected) <= min(reward[i] for i in reward.keys() - selected)


def test_the_first_loss_is_the_mean_weight_times_ln_2(vllm_run: tuple[str, dict[str, Any]]) -> None:
    for row in vllm_run[1]["iterations"]:
        assert row["first_loss"] == pytest.approx(row["first_loss_expected"], abs=1e-4)


def test_a_policy_is_published_as_bfloat16_safetensors_with_its_tokenizer(vllm_run: tuple[str, dict[str, Any]]) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    store, summary = vllm_run
    folder = ArtifactStore(open_objects(store)).fetch(summary["policy"])
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    assert model.dtype == torch.bfloat16
    assert AutoTokenizer.from_pretrained(folder / "model").chat_template
    master = AutoModelForCausalLM.from_pretrained(folder / "master", dtype="auto")
    assert master.dtype == torch.float32
    torch.testing.assert_close(master.to(torch.bfloat16).state_dict(), model.state_dict())
    assert not [p for p in folder.rglob("*") if p.suffix in (".bin", ".pt", ".pkl")]


@pytest.fixture(scope="module")
def reference_run(tiny: Path, prefect_server: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Run two iterations with the transformers engine."""
    store = str(tmp_path_factory.mktemp("reference") / "store")
    run(write_config(tiny), store)
    return store


def test_runs_that_differ_in_beta2_share_iteration_0_up_to_training(
    reference_run: str, tiny: Path, prefect_server: None
) -> None:
    run(write_config(tiny, name="beta2", training={"loss": WDPO | {"beta2": 4.0}}), reference_run)
    (ours, _), (theirs, _) = records(reference_run, "tiny"), records(reference_run, "beta2")
    for shared in ("selection", "responses", "scores", "replay", "started_from"):
        assert ours["artifacts"][shared] == theirs["artifacts"][shared]
    assert ours["artifacts"]["policy"] != theirs["artifacts"]["policy"]
    states = task_states("beta2 iteration 0")
    for name in ("select", "generate", "score by function", "merge"):
        assert set(states[name]) == {"Cached"}, states
    assert states["train"] == ["Completed"]


def test_engine_and_reward_start_once_for_training_and_held_out_prompts(reference_run: str) -> None:
    states = task_states("tiny iteration 1")
    for name in ("generate", "score by function"):
        assert states[name] == ["Completed", "Cached"], "the held-out rewards found what was made with the pairs'"


def task_states(flow_run_name: str) -> dict[str, list[str]]:
    """Return the states of the tasks of a flow run in order, by name."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import TaskRunFilter, TaskRunFilterFlowRunId

    with get_client(sync_client=True) as client:
        flow_run = next(r for r in client.read_flow_runs() if r.name == flow_run_name)
        tasks = client.read_task_runs(
            task_run_filter=TaskRunFilter(flow_run_id=TaskRunFilterFlowRunId(any_=[flow_run.id]))
        )
    states: dict[str, list[str]] = {}
    for task in sorted(tasks, key=lambda task: task.start_time):
        states.setdefault(task.name, []).append(task.state_name)
    return states


def test_a_best_of_n_run_shares_iteration_0_up_to_training(
    reference_run: str, tiny: Path, prefect_server: None
) -> None:
    config = write_config(tiny, name="best-of-n", training={"loss": {"type": "best_of_n"}})
    summary = run(config, reference_run)
    (ours, _), (theirs, second) = records(reference_run, "tiny"), records(reference_run, "best-of-n")
    assert ours["artifacts"]["replay"] == theirs["artifacts"]["replay"]
    assert ours["artifacts"]["policy"] != theirs["artifacts"]["policy"]
    assert [row["first_loss_expected"] for row in summary["iterations"]] == [None, None]
    assert summary["iterations"][0]["first_loss"] == pytest.approx(theirs["metrics"]["policy"]["first"]["loss"])
    assert second["metrics"]["policy"]["last"]["logps/chosen"] < 0


@pytest.mark.parametrize("selector", ["margin", "relative", "bandit"])
def test_runs_that_differ_in_the_selector_share_iteration_0(
    reference_run: str, tiny: Path, prefect_server: None, selector: str
) -> None:
    from optune_core.selection import select

    run(write_config(tiny, name=selector, selection={"type": selector}), reference_run)
    (ours, _), (theirs, second) = records(reference_run, "tiny"), records(reference_run, selector)
    assert ours["artifacts"] == theirs["artifacts"]
    before = pa.Table.from_pylist(replay(reference_run, theirs), schema=REPLAY)
    chosen = select(before, SELECTORS.parse({"type": selector, "rho": 0.5}), seed=1, iteration=1).to_pylist()
    assert {r["prompt_id"] for r in replay(reference_run, second) if r["status"] != "reused"} == set(chosen)


def test_a_finished_run_can_be_extended_and_repeats_nothing(
    reference_run: str, tiny: Path, prefect_server: None
) -> None:
    before = records(reference_run, "tiny")
    run(tiny / "tiny.yaml", reference_run, overrides=["iterations=3", "generation.engine.replicas=2"])
    assert records(reference_run, "tiny")[:2] == before
    _, _, third = records(reference_run, "tiny")
    assert all(seconds > 0 for seconds in third["timing"].values())


def test_configuration_drift_is_refused_with_the_fields_that_differ(
    reference_run: str, tiny: Path, prefect_server: None
) -> None:
    from optune_core.errors import ConfigDrift

    with pytest.raises(ConfigDrift, match=r"training\.loss\.beta1: 0\.1 → 0\.3"):
        run(tiny / "tiny.yaml", reference_run, overrides=["training.loss.beta1=0.3"])


def test_offline_dpo_trains_on_the_given_pairs(tiny: Path, prefect_server: None, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"Question {i}", "chosen": "aeiou " * (1 + i % 3), "rejected": "xyz " * (1 + i % 2)}
        for i in range(8)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = write_config(
        tiny,
        name="offline",
        prompts={
            "source": {"type": "file", "path": str(tmp_path / "pairs.jsonl")},
            "pairs": {"chosen": "chosen", "rejected": "rejected"},
            "sample": None,
            "held_out": 0,
        },
        replaced={"selection": {"type": "none"}},
        training={"loss": WDPO | {"beta2": 0.0}, "reference": "initial"},
    )
    store = str(tmp_path / "store")
    run(config, store)
    first, second = records(store, "offline")
    assert [r["status"] for r in replay(store, first)] == ["regenerated"] * 8
    assert [r["status"] for r in replay(store, second)] == ["reused"] * 8
    assert all(r["chosen"].startswith("aeiou") for r in replay(store, second))
    assert first["metrics"]["policy"]["first"]["loss"] == pytest.approx(0.5 * math.log(2), abs=1e-6)


def test_hypo_trains_on_given_pairs_and_fresh_samples(tiny: Path, prefect_server: None, tmp_path: Path) -> None:
    rows = [{"prompt": f"Question {i}", "chosen": "aeiou " * (1 + i % 3), "rejected": "xyz"} for i in range(6)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = write_config(
        tiny,
        name="hypo",
        prompts={
            "source": {"type": "file", "path": str(tmp_path / "pairs.jsonl")},
            "pairs": {"chosen": "chosen", "rejected": "rejected"},
            "sample": None,
            "held_out": 0,
        },
        replaced={"selection": {"type": "none"}},
        training={
            "loss": {"type": "hypo", "beta1": 0.1, "kl_coefficient": 0.1, "rho": 0.5},
            "reference": "initial",
            "batch_size": 12,
            "epochs": 3,
        },
    )
    store = str(tmp_path / "store")
    summary = run(config, store)
    objects = ArtifactStore(open_objects(store))
    sampled = []
    for t, record in enumerate(records(store, "hypo")):
        assert [r["status"] for r in replay(store, record)] == ["reused" if t else "regenerated"] * 6
        shards = [ref for ref in record["artifacts"]["responses"] if ref.stage == "responses"]
        samples = pa.concat_tables(read_table(objects.fetch(ref) / "responses.parquet", RESPONSES) for ref in shards)
        assert samples.num_rows == 6  # K = 2 of ⌈6/2⌉ prompts, in iteration 0 too
        sampled.append(samples["prompt_id"].to_pylist())
        parents = objects.manifest(record["artifacts"]["policy"]).parents
        assert {parents[name] for name in parents if name.startswith("online/")} == set(shards)
        policy = record["metrics"]["policy"]
        assert (policy["pairs"], policy["online"]) == (6, 6)
        assert (policy["first"]["kl"] == 0) == (t == 0)  # π_0 is the reference
    assert sampled[0] != sampled[1]
    assert summary["iterations"][0]["first_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert summary["iterations"][0]["first_loss_expected"] is None


def test_lora_publishes_merged_weights_of_the_adapted_layers(tiny: Path, prefect_server: None, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    lora = {"lora": {"r": 4, "alpha": 8}, "learning_rate": 1e-2, "checkpoint_every": "0s"}
    store = str(tmp_path / "store")
    summary = run(write_config(tiny, name="lora", iterations=1, prompts={"held_out": 0}, training=lora), store)
    assert summary["iterations"][0]["first_loss"] == pytest.approx(
        summary["iterations"][0]["first_loss_expected"], abs=1e-6
    )
    folder = ArtifactStore(open_objects(store)).fetch(summary["policy"])
    before = AutoModelForCausalLM.from_pretrained(tiny / "policy", dtype=torch.float32).state_dict()
    after = AutoModelForCausalLM.from_pretrained(folder / "master", dtype=torch.float32).state_dict()
    assert after.keys() == before.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "_proj" in name}


def test_a_reward_model_is_trained_once_from_the_samples_of_iteration_0(
    tiny: Path, prefect_server: None, tmp_path: Path
) -> None:
    config = write_config(
        tiny,
        name="proxy",
        iterations=1,
        prompts={"sample": 20, "held_out": 4},
        replaced={
            "reward": {
                "type": "trained",
                "model": str(tiny / "policy"),
                "pairs": {"type": "labelled", "function": "tests.rewards:vowels"},
                "learning_rate": 1e-3,
                "train_batch_size": 4,
                "frozen_layers": 1,
            }
        },
    )
    store = str(tmp_path / "store")
    summary = run(config, store)
    (trained,) = (Path(store) / "artifacts" / "reward-model").iterdir()
    manifest = ArtifactStore(open_objects(store)).committed("reward-model", trained.name)
    assert manifest is not None
    assert 0 <= manifest.metrics["accuracy/held_out"] <= 1
    assert 0 <= manifest.metrics["accuracy/length_only"] <= 1
    assert summary["overall"].keys() == {"proxy", "gold"}
    # π_0's samples for the reward model are iteration 0's responses, sampled once.
    assert len(list((Path(store) / "artifacts" / "selection").iterdir())) == 1
