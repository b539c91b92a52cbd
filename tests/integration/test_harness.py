"""The real lm-evaluation-harness on small tasks, against the same numbers computed without it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from flows.cli.commands import app
from optune_core.config import load_config
from optune_core.data.model_folder import Model
from optune_core.errors import ConfigDrift, ConfigError, DataError, OptuneError
from optune_core.evaluation.harness import tasks
from optune_core.evaluation.harness.config import Harness
from optune_core.evaluation.harness.library import load_tasks
from optune_core.evaluation.loading import load_evaluation
from optune_core.process.progress import silent
from optune_core.stages import model
from optune_core.stages.launch import find_all, run_stage
from optune_core.storage import ArtifactStore, Ledger, Manifest, Ref, open_objects
from tests.tiny import build_model, write_config

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.slow

HERE = Path(__file__).parents[1] / "harness"
CAPITALS = {"task": "capitals", "num_fewshot": 0, "metric": "acc_norm"}
SUMS = {"task": "sums", "num_fewshot": 0, "metric": "exact_match", "filter": "first-number"}
TOYS = {"task": "toys", "num_fewshot": 0, "metric": "acc_norm"}
HF = {"type": "transformers", "dtype": "float32", "batch_size": 4}


def config(*tasks: dict[str, Any], **changes: Any) -> Harness:
    return Harness.model_validate({"name": "ours", "tasks": list(tasks), "include": str(HERE), "engine": HF, **changes})


def put(store: ArtifactStore, folder: Path) -> Ref:
    """Commit a model folder as a policy."""
    spec = model.Spec(model=Model(model=str(folder)), role="policy")
    model.run(store, spec, silent)
    (made,) = find_all(store, "model", spec) or []
    return made.ref


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep data sets out of the user's cache, here and in child processes."""
    import datasets

    folder = str(tmp_path_factory.mktemp("datasets"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_DATASETS_CACHE", folder)
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
        yield


@pytest.fixture(scope="module")
def store(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    return ArtifactStore(open_objects(str(tmp_path_factory.mktemp("benchmark") / "store")))


@pytest.fixture(scope="module")
def policy(store: ArtifactStore, tiny: Path) -> Ref:
    return put(store, tiny / "policy")


def made(store: ArtifactStore, policy: Ref, config: Harness) -> list[Manifest]:
    spec = config.spec(policy)
    tasks.run(store, spec, silent)
    return find_all(store, "benchmark", spec) or []


def results(store: ArtifactStore, manifest: Manifest) -> dict[str, Any]:
    return dict(json.loads(store.read(manifest.ref, tasks.RESULTS)))


def samples(store: ArtifactStore, manifest: Manifest) -> list[dict[str, Any]]:
    return [json.loads(line) for line in store.read(manifest.ref, tasks.SAMPLES).splitlines()]


def questions(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (HERE / f"{name}.jsonl").read_text().splitlines()]


class ByHand:
    """The tiny policy, asked without the harness."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.inference_mode()
    def logp(self, context: str, continuation: str) -> float:
        """Return log π(continuation | context) in nats."""
        before = len(self.tokenizer(context)["input_ids"])
        ids = torch.tensor(self.tokenizer(context + continuation)["input_ids"])
        logps = self.model(ids[None]).logits[0].log_softmax(dim=-1)
        return sum(float(logps[place - 1, ids[place]]) for place in range(before, len(ids)))

    @torch.inference_mode()
    def greedy(self, context: str, tokens: int) -> str:
        ids = self.tokenizer(context)["input_ids"]
        start = len(ids)
        for _ in range(tokens):
            ids.append(int(self.model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == self.tokenizer.eos_token_id:
                break
        return str(self.tokenizer.decode(ids[start:], skip_special_tokens=True))

    def choose(self, row: dict[str, Any], examples: str = "") -> tuple[list[float], bool, bool]:
        """Return the log-probabilities of the choices, and whether acc and acc_norm count the question as right."""
        context = f"{examples}Question: {row['question']}\nAnswer:"
        logps = [self.logp(context, f" {choice}") for choice in row["choices"]]
        a_character = [logp / len(choice) for logp, choice in zip(logps, row["choices"], strict=True)]
        return logps, logps.index(max(logps)) == row["answer"], a_character.index(max(a_character)) == row["answer"]


@pytest.fixture(scope="module")
def by_hand(tiny: Path) -> ByHand:
    return ByHand(tiny / "policy")


def test_choices_and_answers_equal_those_of_plain_transformers(
    store: ArtifactStore, policy: Ref, by_hand: ByHand
) -> None:
    capitals, sums = made(store, policy, config(CAPITALS, SUMS))

    rows = questions("capitals")
    chosen = [by_hand.choose(row) for row in rows]
    noted = samples(store, capitals)
    assert [row["doc"]["question"] for row in noted] == [row["question"] for row in rows]
    for row, (logps, _, _) in zip(noted, chosen, strict=True):
        assert [float(logp) for logp, _ in row["filtered_resps"]] == pytest.approx(logps, abs=1e-3)
    told = results(store, capitals)
    acc, acc_norm = (sum(each[place] for each in chosen) / len(rows) for place in (1, 2))
    assert acc != acc_norm  # or this would not tell the two apart
    assert (told["metrics"]["acc,none"], told["metrics"]["acc_norm,none"]) == pytest.approx((acc, acc_norm))
    deviation = (acc_norm * (1 - acc_norm) / (len(rows) - 1)) ** 0.5
    assert told["metrics"]["acc_norm_stderr,none"] == pytest.approx(deviation)
    assert (told["questions"], told["version"], told["num_fewshot"]) == (6, "1.5", {"capitals": 0})
    assert str(HERE) not in json.dumps(told) and " at 0x" not in json.dumps(told)
    assert capitals.metrics == {name: told[name] for name in ("task", "metrics", "questions", "version")}

    whole = {row["doc"]["question"]: row["resps"][0][0] for row in samples(store, sums) if row["filter"] == "whole"}
    assert whole == {
        row["question"]: by_hand.greedy(f"{row['question']} =", 8).split("\n")[0] for row in questions("sums")
    }
    assert {"exact_match,whole", "exact_match,first-number"} <= results(store, sums)["metrics"].keys()


def test_examples_precede_a_question_and_a_group_has_the_mean_of_its_tasks(
    store: ArtifactStore, policy: Ref, by_hand: ByHand
) -> None:
    shown, toys = made(store, policy, config(CAPITALS | {"num_fewshot": 2}, TOYS))
    examples = {
        tuple(f"Question: {row['question']}\nAnswer: {row['choices'][row['answer']]}\n\n" for row in order)
        for order in (questions("capitals_dev"), questions("capitals_dev")[::-1])
    }
    for row, noted in zip(questions("capitals"), samples(store, shown), strict=True):
        context = noted["arguments"][0][0]
        (before,) = [
            "".join(each) for each in examples if context == "".join(each) + f"Question: {row['question']}\nAnswer:"
        ]
        logps, _, _ = by_hand.choose(row, before)
        assert [float(logp) for logp, _ in noted["filtered_resps"]] == pytest.approx(logps, abs=1e-3)

    right = [by_hand.choose(row)[2] for name in ("capitals", "weather") for row in questions(name)]
    told = results(store, toys)
    assert told["metrics"]["acc_norm,none"] == pytest.approx(sum(right) / 8)
    assert (told["questions"], told["version"], set(told["tasks"])) == (8, "2", {"capitals", "weather"})
    assert [row["task"] for row in samples(store, toys)] == ["capitals"] * 6 + ["weather"] * 2


def test_an_interrupted_benchmark_repeats_only_the_task_in_progress(tiny: Path, tmp_path: Path) -> None:
    store = ArtifactStore(open_objects(str(tmp_path / "store")))
    spec = config(CAPITALS, SUMS).spec(put(store, tiny / "policy"))

    def cut(what: str, done: int, total: int) -> None:
        if what == "run sums":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tasks.run(store, spec, cut)
    first, second = tasks.works(store, spec)
    standing = store.find(first)
    assert standing is not None and store.find(second) is None

    said = []
    tasks.run(store, spec, lambda what, done, total: said.append((what, done, total)))
    assert said[-2:] == [("run sums", 0, 1), ("run tasks", 1, 1)]
    again = store.find(first)
    assert again is not None and again == standing


def test_keys_depend_only_on_settings_that_change_results(store: ArtifactStore, policy: Ref, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(HERE, moved, ignore=shutil.ignore_patterns("__pycache__"))

    def key(**changes: Any) -> str:
        (work,) = tasks.works(store, config(CAPITALS | changes.pop("task", {}), **changes).spec(policy))
        return work.key

    same = [{"name": "other"}, {"task": {"metric": "acc"}}, {"include": str(moved)}, {"engine": HF | {"replicas": 2}}]
    assert {key(**changes) for changes in same} == {key()}
    other = [
        {"task": {"num_fewshot": 1}},
        {"limit": 2},
        {"seed": 1},
        {"chat_template": True},
        {"max_length": 64},
        {"engine": HF | {"dtype": "bfloat16"}},
        {"include": None},
    ]
    (moved / "capitals.jsonl").write_text((HERE / "capitals.jsonl").read_text() + "\n")
    keys = [key(), *(key(**changes) for changes in other), key(include=str(moved))]
    assert len(set(keys)) == len(keys)


def test_all_mistakes_in_the_tasks_are_reported_together() -> None:
    wrong = config(
        CAPITALS | {"task": "capitols"},
        CAPITALS | {"metric": "f1"},
        SUMS | {"filter": "last-number"},
        TOYS | {"metric": "acc"},
        CAPITALS | {"task": "weather", "num_fewshot": 3},
    )
    with pytest.raises(ConfigError) as raised:
        load_tasks(wrong.tasks, wrong.include)
    named, metric, extracted, group, shots = raised.value.problems
    assert "'capitols' is not known: do you mean 'capitals'" in named and "lm-eval ls tasks" in named
    assert "'capitals' has no metric 'f1': it has acc, acc_norm" in metric
    assert "'sums' has no filter 'last-number': it has first-number, whole" in extracted
    assert "'toys' has no metric 'acc': it has acc_norm" in group
    assert "num_fewshot=3, but its definition fixes 0" in shots


def test_a_hub_that_cannot_be_reached_is_an_error_before_any_work() -> None:
    hub = config({"task": "hellaswag", "num_fewshot": 0, "metric": "acc_norm"}, include=None)
    with pytest.raises(DataError, match=r"(?s)task 'hellaswag' cannot be read.*HF_ENDPOINT.*`include`"):
        load_tasks(hub.tasks, hub.include)


def test_the_tasks_of_table_5_exist_in_the_library_with_their_metrics_and_filters() -> None:
    """The questions are on the hub, so only names, metrics, filters and examples are checked."""
    from lm_eval.tasks import TaskManager

    index = TaskManager().task_index
    table_5 = load_evaluation("configs/evaluation/table-5.yaml")
    assert isinstance(table_5, Harness)
    for task in table_5.tasks:
        definition = index[task.task].cfg
        metrics = definition.get("metric_list") or definition["aggregate_metric_list"]
        assert task.metric in [each["metric"] for each in metrics], task.task
        filters = [each["name"] for each in definition.get("filter_list", [{"name": "none"}])]
        assert task.filter in filters, task.task
        assert definition.get("num_fewshot", task.num_fewshot) == task.num_fewshot, task.task


def test_vllm_gives_the_results_of_transformers(
    store: ArtifactStore, policy: Ref, by_hand: ByHand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stage runs the harness's own model for vLLM in a child process."""
    monkeypatch.setenv("TQDM_DISABLE", "1")  # vLLM divides by the time of a bar, which such a bar does not have
    engine = {"type": "vllm", "dtype": "float32", "max_num_seqs": 4, "enforce_eager": True}
    engine |= {"cpu_kv_cache_gib": 1, "gpu_memory_utilization": 0.2}
    spec = config(CAPITALS, SUMS, engine=engine).spec(policy)
    capitals, sums = run_stage(store, "benchmark", spec, silent, lambda line: None)
    for row, noted in zip(questions("capitals"), samples(store, capitals), strict=True):
        assert [float(logp) for logp, _ in noted["filtered_resps"]] == pytest.approx(by_hand.choose(row)[0], abs=1e-2)
    whole = {row["doc"]["question"]: row["resps"][0][0] for row in samples(store, sums) if row["filter"] == "whole"}
    assert {question: _letters(text) for question, text in whole.items()} == {
        row["question"]: _letters(by_hand.greedy(f"{row['question']} =", 8).split("\n")[0]) for row in questions("sums")
    }


def _letters(text: str) -> str:
    """Remove what the two write differently: special tokens and halves of characters."""
    return re.sub(r"<\|\w+\|>|\ufffd", "", text)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "ours.yaml"
    path.write_text(yaml.safe_dump(config(CAPITALS, SUMS, limit=3).model_dump(mode="json")))
    return path


def test_the_command_benchmarks_the_policies_of_a_run(
    store: ArtifactStore, policy: Ref, tiny: Path, tmp_path: Path, file: Path, prefect_server: None
) -> None:
    """Record the policies of a run by hand: the kind reads nothing else of a run."""
    trained = put(store, build_model(tmp_path / "trained", seed=7))
    ledger = Ledger(store.objects, "asked")
    ledger.open(load_config(write_config(tiny, name="asked")), {"policy": policy})
    ledger.commit_iteration(0, {"artifacts": {"policy": trained}})

    def call(*arguments: str, run: str = "asked") -> str:
        command = ["evaluate", *arguments, "--run", run, "--store", store.objects.url]
        result = CliRunner().invoke(app, command, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    printed = call(str(file), "--all")
    records = ledger.evaluations("harness")
    assert [(record["iteration"], record["policy"]) for record in records] == [
        (0, policy),
        (1, trained),
    ]
    for record in records:
        capitals, sums = record["metrics"]["tasks"]
        average = record["metrics"]["average"]
        assert (capitals["task"], capitals["questions"], sums["questions"]) == ("capitals", 3, 3)
        told = json.loads(store.read(record["artifacts"]["tasks"][0], tasks.RESULTS))
        assert capitals["value"] == told["metrics"]["acc_norm,none"]
        assert average == pytest.approx((capitals["value"] + sums["value"]) / 2)
        assert f"{100 * average:.2f}" in printed
    assert "0-shot exact_match, first-number" in printed and "ONLY THE FIRST 3 QUESTIONS" in printed

    before = set(store.keys("benchmark"))
    assert str(HERE) not in repr(records)
    call(str(file), "--iteration", "1")
    call(str(file), "name=plain", "tasks=[{task: capitals, num_fewshot: 0, metric: acc}]")
    assert set(store.keys("benchmark")) == before
    with pytest.raises(ConfigDrift, match="limit: 3 → 2"):
        call(str(file), "limit=2")
    with pytest.raises(OptuneError, match=r"iteration=4: .* has the policies 0 to 1"):
        call(str(file), "--iteration", "4")
    with pytest.raises(OptuneError, match="no run 'unasked'"):
        call(str(file), run="unasked")

    collected = CliRunner().invoke(app, ["gc", "--grace", "0", "--store", store.objects.url], catch_exceptions=False)
    assert collected.exit_code == 0, collected.output
    for record in ledger.evaluations("harness"):
        assert len(record["artifacts"]["tasks"]) == (2 if record["name"] == "ours" else 1)
        for artifact in record["artifacts"]["tasks"]:
            assert store.read(artifact, tasks.SAMPLES)
