"""Evaluations in the run's ledger: committed once, found again, and kept with what they refer to."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from optune_core.config import parse_config
from optune_core.data.schemas import COMPARISONS, write_table
from optune_core.errors import ConfigDrift, ConfigError, JudgeError, OptuneError
from optune_core.evaluation.evaluation import Outcome
from optune_core.evaluation.loading import load_evaluation
from optune_core.evaluation.records import check_drift, headlines, markdown, open_subject, record_of, tables
from optune_core.evaluation.subject import asked_iterations, check_held_out, policies, run_config
from optune_core.storage import ArtifactStore, Ledger, Manifest, Work
from optune_core.storage.gc import delete_garbage, find_garbage
from optune_core.storage.local import LocalObjects

EVALUATION = """
kind: win_score
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
    "training": {"loss": {"type": "wdpo", "beta1": 0.1, "beta2": 1.0}},
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
    made = [make(store, f"policy {t}").ref for t in range(3)]
    ledger.open(parse_config(RUN, source="test"), {"policy": made[0]})
    for t in range(2):
        ledger.commit_iteration(t, {"iteration": t, "artifacts": {"policy": made[t + 1]}})
        ledger.commit_held_out(t, {"responses": [make(store, f"answers {t}").ref]})
    return ledger


def evaluation(tmp_path: Path, *overrides: str) -> Any:
    (tmp_path / "small.yaml").write_text(EVALUATION)
    return load_evaluation(tmp_path / "small.yaml", overrides)


def test_records_are_committed_once_and_listed_in_order(ledger: Ledger) -> None:
    assert ledger.evaluations() == []
    for name, iteration in (("b", 1), ("a", 10), ("a", 2)):
        record = {"kind": "win_score", "name": name, "iteration": iteration, "metrics": {"win_score": 51.0}}
        assert ledger.commit_evaluation(name, iteration, record) == record
    committed = ledger.commit_evaluation("a", 2, {"name": "a", "iteration": 2, "metrics": {"win_score": 99.0}})
    assert committed["metrics"]["win_score"] == 51.0
    for kind in (None, "win_score"):
        assert [(r["name"], r["iteration"]) for r in ledger.evaluations(kind)] == [("a", 2), ("a", 10), ("b", 1)]
    assert ledger.evaluations("harness") == []
    assert ledger.objects.read("runs/r/evaluations/a/0002.json") is not None


def test_a_killed_writers_temporary_file_is_no_record(ledger: Ledger, tmp_path: Path) -> None:
    ledger.commit_evaluation("a", 1, {"name": "a", "iteration": 1})
    (tmp_path / "store/runs/r/evaluations/a/.0002.json.abc").write_text("{")
    assert len(ledger.evaluations()) == 1


@pytest.mark.parametrize("name", ["../other", "A", "a/b", ""])
def test_a_name_that_is_no_name_reaches_no_path(ledger: Ledger, name: str) -> None:
    with pytest.raises(ValueError, match="not a valid name"):
        ledger.commit_evaluation(name, 0, {})


def test_garbage_collection_keeps_what_a_comparison_refers_to(ledger: Ledger, store: ArtifactStore) -> None:
    model, stray = make(store, "baseline model"), make(store, "stray")
    responses = make(store, "its responses", policy=model)
    shard = make(store, "comparisons", baseline=responses)
    summary = make(store, "win score", shard=shard)
    artifacts = {"summary": summary.ref}
    ledger.commit_evaluation("a", 2, {"name": "a", "iteration": 2, "artifacts": artifacts})
    delete_garbage(store, find_garbage(store, grace_seconds=-1))
    for kept in (model, responses, shard, summary):
        assert store.committed(kept.ref.stage, kept.ref.key) is not None
    assert store.committed(stray.ref.stage, stray.ref.key) is None


def test_the_policies_are_those_that_are_committed(ledger: Ledger, store: ArtifactStore) -> None:
    assert [policy.digest for policy in policies(ledger)] == [make(store, f"policy {t}").ref.digest for t in range(3)]
    assert run_config(ledger).name == "r"
    with pytest.raises(OptuneError, match="has no run 'absent' to evaluate; its runs: r"):
        run_config(Ledger(store.objects, "absent"))


def test_which_iterations_are_asked_for(ledger: Ledger, tmp_path: Path) -> None:
    config = evaluation(tmp_path)
    other = evaluation(tmp_path, "baseline={type: model, model: other}")
    assert asked_iterations(ledger, config.baseline_iteration, 3, None, every=False) == [2]
    assert asked_iterations(ledger, config.baseline_iteration, 3, 1, every=False) == [1]
    assert asked_iterations(ledger, config.baseline_iteration, 3, None, every=True) == [1, 2]
    assert asked_iterations(ledger, other.baseline_iteration, 3, None, every=True) == [0, 1, 2]
    assert asked_iterations(ledger, other.baseline_iteration, 3, 0, every=False) == [0]


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
def test_policies_that_cannot_be_evaluated(
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
        baseline = evaluation(tmp_path, *overrides).baseline_iteration
        asked_iterations(ledger, baseline, known, iteration, every=every)


def test_held_out_prompts_that_there_are_not(ledger: Ledger) -> None:
    settings = run_config(ledger)
    check_held_out(ledger, settings, [0, 1])
    with pytest.raises(OptuneError, match="policy 2 of run 'r' has not answered the held-out prompts"):
        check_held_out(ledger, settings, [0, 2])
    none = settings.model_copy(update={"prompts": settings.prompts.model_copy(update={"held_out": 0})})
    with pytest.raises(OptuneError, match=r"keeps no prompts for evaluation \(prompts\.held_out=0\)"):
        check_held_out(ledger, none, [0])


def test_one_name_is_one_configuration(ledger: Ledger, tmp_path: Path) -> None:
    """Whichever policy a record is of: all of a name are rows of one table."""
    config = evaluation(tmp_path)
    check_drift(ledger, config)
    ledger.commit_evaluation("small", 1, {"name": "small", "iteration": 1, "config": config.identity()})
    check_drift(ledger, evaluation(tmp_path, "judge.concurrency=1"))
    check_drift(ledger, evaluation(tmp_path, "judge.model=other", "name=another"))
    with pytest.raises(ConfigDrift, match=r"judge\.model: 'gpt-4' → 'other'(.|\n)*give the evaluation another name"):
        check_drift(ledger, evaluation(tmp_path, "judge.model=other"))


def test_baselines_are_named_for_people(tmp_path: Path) -> None:
    source = "{type: responses, source: {type: file, path: a.jsonl}}"
    named = ["baseline.iteration=2", "baseline={type: model, model: owner/name}", f"baseline={source}"]
    assert [evaluation(tmp_path, override).baseline.description for override in named] == [
        "policy 2 of the run",
        "model owner/name",
        "responses of file 'a.jsonl'",
    ]


def test_a_page_shows_a_models_text_as_text(store: ArtifactStore) -> None:
    text = "# no heading\n```\n[no](link)\n```"
    row = {"outcome": "win", "prompt": "Why?", "policy_response": text, "baseline_response": "b" * 900}
    with store.scratch() as scratch:
        write_table(pa.Table.from_pylist([row], schema=COMPARISONS), COMPARISONS, scratch / "comparisons.parquet")
        shard = store.commit(Work("comparisons", 1, {}), scratch).ref
    counts = {"wins": 1, "ties": 0, "losses": 0, "malformed": 2, "total": 1, "requests": 6}
    usage = {"prompt_tokens": 1200, "completion_tokens": 34, "cost": 0.5}
    record = {
        "kind": "win_score",
        "name": "small",
        "iteration": 2,
        "baseline": "model x",
        "judge": "stand-in: reward function f",
        "prompts": 3,
        "metrics": {"win_score": 150.0, "low": 150.0, "high": 150.0} | counts | usage,
        "artifacts": {"comparisons": [shard]},
    }
    page = markdown(store, "r", record)
    assert page.startswith("# Win score: small, policy 2 of r\n")
    assert "| 2 | 150.0 | [150.0, 150.0] | 1 | 0 | 0 | 2 | 1,234 | 0.50 |" in page
    assert "**Against model x, 3 prompts; judge: stand-in: reward function f**" in page
    assert f"````\n{text}\n````" in page
    assert "b" * 800 + "…" in page and "b" * 801 not in page


def test_subject_is_opened_only_where_policies_can_be_evaluated(
    ledger: Ledger, store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "the-key")
    subject = open_subject(store, evaluation(tmp_path), "r", 1, every=False)
    assert (subject.run, subject.config.name, subject.iterations) == ("r", "r", [1])
    assert subject.policies == policies(ledger)
    with pytest.raises(OptuneError, match="policy 2 of run 'r' has not answered the held-out prompts"):
        open_subject(store, evaluation(tmp_path), "r", None, every=False)
    with pytest.raises(OptuneError, match="policy 2 of run 'r' has not answered the held-out prompts"):
        open_subject(store, evaluation(tmp_path, "baseline.iteration=2"), "r", 1, every=False)
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(JudgeError, match=r"judge\.api_key_env='OPENAI_API_KEY'"):
        open_subject(store, evaluation(tmp_path), "r", 1, every=False)
    monkeypatch.setenv("OPENAI_API_KEY", "the-key")
    ledger.commit_evaluation("small", 2, {"kind": "win_score", "name": "small", "config": {}, "iteration": 2})
    with pytest.raises(ConfigDrift, match="evaluation 'small' of policy 2 of run 'r' was made with another"):
        open_subject(store, evaluation(tmp_path), "r", 1, every=False)


def test_record_names_the_policy_the_configuration_and_the_artifacts(
    ledger: Ledger, store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "the-key")
    config = evaluation(tmp_path)
    subject = open_subject(store, config, "r", 1, every=False)
    made = make(store, "summary").ref
    outcome = Outcome(
        iteration=1,
        metrics={"win_score": 50.0},
        artifacts={"summary": made, "comparisons": [made], "baseline_model": None},
        facts={"judge": "a judge"},
    )
    assert record_of(config, subject, outcome) == {
        "kind": "win_score",
        "name": "small",
        "iteration": 1,
        "policy": policies(ledger)[1],
        "judge": "a judge",
        "metrics": {"win_score": 50.0},
        "artifacts": {"summary": asdict(made), "comparisons": [asdict(made)], "baseline_model": None},
        "config": config.identity(),
    }


def test_each_evaluation_has_a_table_and_the_headline_of_its_last_policy() -> None:
    def win_score(name: str, iteration: int, score: float) -> dict[str, Any]:
        counts = {"wins": 2, "ties": 3, "losses": 1, "malformed": 0, "requests": 0}
        usage = {"prompt_tokens": 0, "completion_tokens": 0, "cost": None}
        metrics = {"win_score": score, "low": score - 5, "high": score + 5} | counts | usage
        record = {"kind": "win_score", "name": name, "iteration": iteration, "metrics": metrics}
        return record | {"baseline": "policy 0 of the run", "judge": "j", "prompts": 6}

    rates = {"lc_win_rate": 51.25, "lc_standard_error": 1.5, "win_rate": 60.0, "standard_error": 2.0}
    counts = {"total": 9, "malformed": 1, "mean_length": 812.4, "mean_reference_length": 900.6, "tokens": 1e4}
    alpaca = {"kind": "alpaca_eval", "name": "c", "iteration": 0, "metrics": rates | counts | {"cost": 0.125}}
    alpaca |= {"reference": "writer", "annotator": "w", "prompts": 10}
    lengths = {"kind": "tests.kinds:MeanLength", "name": "d", "iteration": 3, "metrics": {"length": 4.5}}
    lengths |= {"config": {"unit": "words"}}
    records = [alpaca, win_score("b", 2, 55.0), lengths, win_score("b", 1, 62.5), win_score("a", 1, 48.0)]

    a, b, c, d = tables(records)
    assert (a.title, b.title, c.title, d.title) == ("Win score: a", "Win score: b", "AlpacaEval 2: c", "Evaluation: d")
    assert b.about == "Against policy 0 of the run, 6 prompts; judge: j"
    assert b.rows == [
        ["1", "62.5", "[57.5, 67.5]", "2", "3", "1", "0", "–", "–"],
        ["2", "55.0", "[50.0, 60.0]", "2", "3", "1", "0", "–", "–"],
    ]
    assert c.about == "Against writer, 10 prompts; annotator: w"
    assert c.rows == [["0", "51.25", "1.50", "60.00", "2.00", "9", "1", "812", "901", "10,000", "0.12"]]
    assert (d.columns, d.rows, d.about, d.note) == (("t", "words"), [["3", "4.50"]], "", "")
    for table in (a, b, c, d):
        assert {len(row) for row in table.rows} == {len(table.columns)}

    assert [(each.label, each.iteration, each.value, each.interval) for each in headlines(records)] == [
        ("Win score, a", 1, "48.0", "95 % [43.0, 53.0]"),
        ("Win score, b", 2, "55.0", "95 % [50.0, 60.0]"),
        ("LC win rate, c", 0, "51.25", "± 1.50"),
    ]
