"""Evaluations of the kind harness: mistakes are named, and the table reads as the paper's."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from optune_core.errors import ConfigError, DataError, OptuneError
from optune_core.evaluation.harness.config import Harness
from optune_core.evaluation.harness.library import harness_version, include_identity
from optune_core.evaluation.harness.results import average, task_results
from optune_core.evaluation.loading import load_evaluation
from optune_core.reports.page import RunPage, render_page
from tests.unit.facts import sound_run

GOOD = "kind: harness\nname: small\ntasks:\n  - {task: hellaswag, num_fewshot: 0, metric: acc_norm}\n"


def table_5() -> Harness:
    config = load_evaluation("configs/evaluation/table-5.yaml")
    assert isinstance(config, Harness)
    return config


def test_table_5_is_the_papers() -> None:
    config = table_5()
    assert {task.task: (task.num_fewshot, task.metric) for task in config.tasks} == {
        "hellaswag": (0, "acc_norm"),
        "mmlu": (0, "acc"),
        "truthfulqa_mc2": (0, "acc"),
        "gsm8k": (5, "exact_match"),
    }
    assert (config.engine.type, config.limit, config.chat_template) == ("vllm", None, False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("num_fewshot: -1", r"tasks\.0\.num_fewshot = -1: .*greater than or equal to 0"),
        ("metric: acc, shots: 5", r"tasks\.0\.shots: unknown key"),
    ],
)
def test_mistakes_are_reported_by_their_key(tmp_path: Path, change: str, message: str) -> None:
    path = tmp_path / "small.yaml"
    name = change.partition(":")[0]
    old = {"num_fewshot": "num_fewshot: 0", "metric": "metric: acc_norm"}[name]
    path.write_text(GOOD.replace(old, change))
    with pytest.raises(ConfigError, match=message):
        load_evaluation(path)


def test_a_missing_folder_of_tasks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"include='.*nowhere' is no folder"):
        include_identity(str(tmp_path / "nowhere"))


def test_a_missing_harness_is_reported_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(OptuneError, match=r"install optune\[harness\]"):
        harness_version()


# Table 3, Zephyr-7B-beta: HellaSwag, MMLU, TruthfulQA, GSM8k, average.
ZEPHYR = [0.8205, 0.5813, 0.501, 0.3624]


def record(iteration: int = 0) -> dict[str, Any]:
    config = table_5()
    made = [computed(task.metric, task.filter, value) for task, value in zip(config.tasks, ZEPHYR, strict=True)]
    results = task_results(config.tasks, made)
    return {
        "kind": config.kind,
        "name": config.name,
        "iteration": iteration,
        "metrics": {"tasks": results, "average": average(results)},
        "config": config.model_dump(mode="json") | {"harness": "0.4.13"},
    }


def computed(metric: str, name: str, value: float) -> dict[str, Any]:
    metrics = {f"{metric},{name}": value, f"{metric}_stderr,{name}": 0.0042, "bleu,none": 3.0}
    return {"metrics": metrics, "questions": 10, "version": "1.0"}


def test_the_table_shows_the_values_of_table_3() -> None:
    assert [head.split("\n")[0] for head in Harness.columns(record())] == [
        "t",
        "hellaswag",
        "mmlu",
        "truthfulqa_mc2",
        "gsm8k",
        "average",
    ]
    cells = Harness.cells(record())
    assert cells == ["0", "82.05 ± 0.42", "58.13 ± 0.42", "50.10 ± 0.42", "36.24 ± 0.42", "56.63"]
    assert "lm-evaluation-harness 0.4.13, vllm; no chat template" in Harness.about(record())


def test_a_metric_that_is_no_share_is_shown_unscaled_and_not_averaged() -> None:
    config = Harness.model_validate({"name": "mixed", "tasks": [{"task": "wmt", "num_fewshot": 0, "metric": "bleu"}]})
    (result,) = task_results(config.tasks, [computed("acc", "none", 0.5)])
    assert (result["value"], result["stderr"], average([result])) == (3.0, None, None)
    mixed = {"iteration": 2, "metrics": {"tasks": [result], "average": None}}
    assert Harness.cells(mixed) == ["2", "3.0000", "–"]
    without = {"metrics": {"acc,none": 0.5, "acc_stderr,none": 0.1}, "questions": 1, "version": "1"}
    with pytest.raises(OptuneError, match=r"no finite 'bleu' .* acc,none\. Name"):
        task_results(config.tasks, [without])


def test_the_report_shows_harness_results() -> None:
    def page(*records: dict[str, Any]) -> str:
        return render_page([RunPage(replace(sound_run(), evaluations=list(records)), [], [], against_first={})])

    assert "Benchmark: table-5" not in page()
    shown = page(record(0), record(2))
    assert shown.count("<h3>Benchmark: table-5</h3>") == 1
    assert shown.count("<td>82.05 ± 0.42</td>") == 2 and "truthfulqa_mc2" in shown
