"""Win scores in the ledger of a run: committed once, found again, kept with the artifacts they refer to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from optune_core.data.schemas import COMPARISONS, write_table
from optune_core.errors import ConfigDrift, ConfigError, OptuneError
from optune_core.evaluation.loading import load_evaluation
from optune_core.evaluation.subject import (
    asked_iterations,
    check_comparison,
    check_held_out,
    describe_baseline,
    policies,
    recorded_config,
    run_config,
)
from optune_core.evaluation.win_score.report import comparison_markdown
from optune_core.storage import ArtifactStore, Ledger, Manifest, Work
from optune_core.storage.gc import delete_garbage, find_garbage
from optune_core.storage.local import LocalObjects

EVALUATION = """
name: small
prompts: {type: held_out}
baseline: {type: iteration, iteration: 0}
judge: {type: openai, model: gpt-4}
"""
RUN = {
    "name": "r",
    "policy": {"model": "somewhere"},
    "prompts": {"source": {"type": "file", "path": "prompts.jsonl"}, "held_out": 3},
    "reward": {"type": "function", "function": "my.module:score"},
    "training": {"beta1": 0.1, "beta2": 1.0},
}


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(LocalObjects(tmp_path / "store"))


def make(store: ArtifactStore, name: str, **parents: Manifest) -> Manifest:
    work = Work("demo", 1, {"name": name}, {role: parent.ref for role, parent in parents.items()})
    with store.scratch() as scratch:
        (scratch / "data").write_text(name)
        return store.commit(work, scratch)


@pytest.fixture
def ledger(store: ArtifactStore) -> Ledger:
    """A run with π_0, π_1, π_2, of which the first two have answered the held-out prompts."""
    ledger = Ledger(store.objects, "r")
    made = [make(store, f"policy {t}").ref.to_json() for t in range(3)]
    ledger.open(RUN, {"policy": made[0]})
    for t in range(2):
        ledger.commit_iteration(t, {"iteration": t, "artifacts": {"policy": made[t + 1]}})
        ledger.commit_evaluation(t, {"responses": [make(store, f"answers {t}").ref.to_json()]})
    return ledger


def evaluation(tmp_path: Path, *overrides: str) -> Any:
    (tmp_path / "small.yaml").write_text(EVALUATION)
    return load_evaluation(tmp_path / "small.yaml", overrides)


def test_records_are_committed_once_and_listed_in_order(ledger: Ledger) -> None:
    assert ledger.comparisons() == []
    for name, iteration in (("b", 1), ("a", 10), ("a", 2)):
        record = {"name": name, "iteration": iteration, "metrics": {"win_score": 51.0}}
        assert ledger.commit_comparison(name, iteration, record) == record
    committed = ledger.commit_comparison("a", 2, {"name": "a", "iteration": 2, "metrics": {"win_score": 99.0}})
    assert committed["metrics"]["win_score"] == 51.0
    assert [(r["name"], r["iteration"]) for r in ledger.comparisons()] == [("a", 2), ("a", 10), ("b", 1)]
    assert ledger.objects.read("runs/r/comparisons/a/0002.json") is not None


def test_the_temporary_file_of_a_killed_writer_is_no_record(ledger: Ledger, tmp_path: Path) -> None:
    ledger.commit_comparison("a", 1, {"name": "a", "iteration": 1})
    (tmp_path / "store/runs/r/comparisons/a/.0002.json.abc").write_text("{")
    assert ledger.comparisons() == [{"name": "a", "iteration": 1}]


@pytest.mark.parametrize("name", ["../other", "A", "a/b", ""])
def test_an_invalid_name_of_a_comparison_is_refused(ledger: Ledger, name: str) -> None:
    with pytest.raises(ValueError, match="not a valid name"):
        ledger.commit_comparison(name, 0, {})


def test_garbage_collection_keeps_what_a_comparison_refers_to(ledger: Ledger, store: ArtifactStore) -> None:
    model, stray = make(store, "baseline model"), make(store, "stray")
    responses = make(store, "its responses", policy=model)
    shard = make(store, "comparisons", baseline=responses)
    summary = make(store, "win score", shard=shard)
    ledger.commit_comparison("a", 2, {"name": "a", "iteration": 2, "artifact": summary.ref.to_json()})
    delete_garbage(store, find_garbage(store, grace_seconds=-1))
    for kept in (model, responses, shard, summary):
        assert store.committed(kept.ref.stage, kept.ref.key) is not None
    assert store.committed(stray.ref.stage, stray.ref.key) is None


def test_the_policies_of_a_run_are_those_it_has_committed(ledger: Ledger, store: ArtifactStore) -> None:
    assert [policy.digest for policy in policies(ledger)] == [make(store, f"policy {t}").ref.digest for t in range(3)]
    assert run_config(ledger).name == "r"
    with pytest.raises(OptuneError, match="has no run 'absent' to evaluate; its runs: r"):
        run_config(Ledger(store.objects, "absent"))


def test_the_options_select_the_iterations_to_evaluate(ledger: Ledger, tmp_path: Path) -> None:
    config = evaluation(tmp_path)
    other = evaluation(tmp_path, "baseline={type: model, model: other}")
    assert asked_iterations(ledger, config, 3, None, every=False) == [2]
    assert asked_iterations(ledger, config, 3, 1, every=False) == [1]
    assert asked_iterations(ledger, config, 3, None, every=True) == [1, 2]
    assert asked_iterations(ledger, other, 3, None, every=True) == [0, 1, 2]
    assert asked_iterations(ledger, other, 3, 0, every=False) == [0]


@pytest.mark.parametrize(
    ("overrides", "iteration", "every", "known", "error", "message"),
    [
        ([], 3, False, 3, OptuneError, r"iteration=3: run 'r' has the policies 0 to 2 so far"),
        ([], -1, False, 3, OptuneError, r"iteration=-1"),
        (["baseline.iteration=7"], 1, False, 3, OptuneError, r"baseline\.iteration=7: run 'r' has the policies 0 to 2"),
        ([], 0, False, 3, OptuneError, "is the baseline itself"),
        ([], None, True, 1, OptuneError, "is the baseline itself"),
        ([], 1, True, 3, ConfigError, "--iteration 1 and --all are both given"),
    ],
)
def test_impossible_iterations_are_refused(
    ledger: Ledger,
    tmp_path: Path,
    overrides: list[str],
    iteration: int | None,
    every: bool,
    known: int,
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        asked_iterations(ledger, evaluation(tmp_path, *overrides), known, iteration, every=every)


def test_missing_held_out_responses_are_refused(ledger: Ledger) -> None:
    settings = run_config(ledger)
    check_held_out(ledger, settings, [0, 1])
    with pytest.raises(OptuneError, match="policy 2 of run 'r' has not answered the held-out prompts"):
        check_held_out(ledger, settings, [0, 2])
    none = settings.model_copy(update={"prompts": settings.prompts.model_copy(update={"held_out": 0})})
    with pytest.raises(OptuneError, match=r"keeps no prompts for evaluation \(prompts\.held_out=0\)"):
        check_held_out(ledger, none, [0])


def test_another_configuration_under_the_same_name_is_refused(ledger: Ledger, tmp_path: Path) -> None:
    config = evaluation(tmp_path)
    check_comparison(ledger, config, 1)
    ledger.commit_comparison("small", 1, {"name": "small", "iteration": 1, "config": recorded_config(config)})
    check_comparison(ledger, evaluation(tmp_path, "judge.concurrency=1"), 1)
    check_comparison(ledger, evaluation(tmp_path, "judge.model=other"), 2)
    with pytest.raises(ConfigDrift, match=r"judge\.model: 'gpt-4' → 'other'(.|\n)*give this one another name"):
        check_comparison(ledger, evaluation(tmp_path, "judge.model=other"), 1)


def test_baselines_are_named_for_people(tmp_path: Path) -> None:
    source = "{type: responses, source: {type: file, path: a.jsonl}}"
    named = ["baseline.iteration=2", "baseline={type: model, model: owner/name}", f"baseline={source}"]
    assert [describe_baseline(evaluation(tmp_path, override)) for override in named] == [
        "policy 2 of the run",
        "model owner/name",
        "responses of file 'a.jsonl'",
    ]


def test_the_text_of_a_model_is_shown_as_text(store: ArtifactStore) -> None:
    text = "# no heading\n```\n[no](link)\n```"
    row = {"outcome": "win", "prompt": "Why?", "policy_response": text, "baseline_response": "b" * 900}
    with store.scratch() as scratch:
        write_table(pa.Table.from_pylist([row], schema=COMPARISONS), COMPARISONS, scratch / "comparisons.parquet")
        shard = store.commit(Work("comparisons", 1, {}), scratch).ref
    counts = {"wins": 1, "ties": 0, "losses": 0, "malformed": 2, "total": 1, "requests": 6}
    usage = {"prompt_tokens": 1200, "completion_tokens": 34, "cost": 0.5}
    record = {
        "iteration": 2,
        "baseline": "model x",
        "judge": "stand-in: reward function f",
        "prompts": 3,
        "metrics": {"win_score": 150.0, "low": 150.0, "high": 150.0} | counts | usage,
        "comparisons": [shard.to_json()],
    }
    page = comparison_markdown(store, "r", record)
    assert "| 2 | 150.0 | [150.0, 150.0] | 1 | 0 | 0 | 2 | 1,234 | 0.50 |" in page
    assert "Judge: stand-in: reward function f." in page
    assert f"````\n{text}\n````" in page
    assert "b" * 800 + "…" in page and "b" * 801 not in page
