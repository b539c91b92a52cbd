"""The flow `evaluate` on a real run of the tiny model: what it reuses, records, shows and refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from flows.cli.commands import app
from optune_core.data.schemas import COMPARISONS, PROMPTS, RESPONSES, read_table
from optune_core.data.shards import read_shards
from optune_core.errors import ConfigDrift, DataError, JudgeError, OptuneError
from optune_core.evaluation.records import markdown
from optune_core.parts.own_code import source_digest
from optune_core.reports.page import report
from optune_core.storage import ArtifactStore, Ledger, open_objects
from tests.fake_judge import FakeJudge, score, serving
from tests.tiny import PROMPTS as TEXTS
from tests.tiny import build_model, write_config

pytestmark = pytest.mark.slow

STAND_IN = {"type": "reward", "reward": {"type": "function", "function": "tests.rewards:brevity"}, "tie_margin": 1.0}
TINY = {"engine": {"type": "transformers", "dtype": "float32"}, "max_tokens": 10, "shard_size": 4}


@pytest.fixture(scope="module")
def store(tiny: Path, prefect_server: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store with the run `judged`: two iterations, six held-out prompts."""
    from flows.run import optune

    store = str(tmp_path_factory.mktemp("evaluate") / "store")
    optune(str(write_config(tiny, name="judged")), store=store)
    return store


@pytest.fixture
def server() -> Iterator[FakeJudge]:
    with serving() as server:
        yield server


def write(folder: Path, name: str, **sections: Any) -> str:
    config = {
        "kind": "win_score",
        "name": name,
        "prompts": {"type": "held_out"},
        "baseline": {"type": "iteration", "iteration": 0},
        "judge": STAND_IN,
        "shard_size": 4,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config | sections))
    return str(path)


def evaluate(*arguments: Any, **more: Any) -> list[dict[str, Any]]:
    from flows.evaluate import evaluate as flow

    return flow(*arguments, **more)


def call(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def artifacts(store: str, stage: str) -> set[str]:
    return set(ArtifactStore(open_objects(store)).keys(stage))


def judged(store: str, record: dict[str, Any]) -> list[dict[str, Any]]:
    objects = ArtifactStore(open_objects(store))
    shards = record["artifacts"]["comparisons"]
    return read_shards(objects, shards, "comparisons.parquet", COMPARISONS).to_pylist()


def test_held_out_responses_of_the_run_are_judged_without_generating_them_again(store: str, tmp_path: Path) -> None:
    answered = artifacts(store, "responses")
    printed = call("evaluate", write(tmp_path, "held"), "--run", "judged", "--all", "--store", store)
    assert artifacts(store, "responses") == answered
    objects = ArtifactStore(open_objects(store))
    ledger = Ledger(objects.objects, "judged")
    records = [record for record in ledger.evaluations("win_score") if record["name"] == "held"]
    assert [record["iteration"] for record in records] == [1, 2]
    for record in records:
        trained = ledger.iteration(record["iteration"] - 1)
        assert trained is not None and record["policy"] == trained["artifacts"]["policy"]
        rows = judged(store, record)
        assert len(rows) == record["prompts"] == 6
        evaluated = {}
        for side, t in (("policy", record["iteration"]), ("baseline", 0)):
            held_out = ledger.held_out(t)
            assert held_out is not None
            shards = held_out["responses"]
            table = read_shards(objects, shards, "responses.parquet", RESPONSES)
            evaluated[side] = dict(zip(table["prompt_id"].to_pylist(), table["response"].to_pylist(), strict=True))
        for row in rows:
            ours, theirs = (evaluated[side][row["prompt_id"]] for side in ("policy", "baseline"))
            assert (row["policy_response"], row["baseline_response"]) == (ours, theirs)
            gap = len(theirs) - len(ours)
            assert row["outcome"] == ("tie" if abs(gap) <= 1 else "win" if gap > 0 else "lose")
        metrics = record["metrics"]
        outcomes = [row["outcome"] for row in rows]
        assert [metrics[name] for name in ("wins", "ties", "losses", "malformed")] == [
            outcomes.count(outcome) for outcome in ("win", "tie", "lose", "malformed")
        ]
        assert metrics["win_score"] == 50 + 100 * (metrics["wins"] - metrics["losses"]) / 6
        assert metrics["low"] <= metrics["win_score"] <= metrics["high"]
        assert record["judge"] == "stand-in: reward function tests.rewards:brevity"
        assert record["baseline"] == "policy 0 of the run"
        assert f"{metrics['win_score']:.1f}" in printed
        summary = json.loads(objects.read(record["artifacts"]["summary"], "win_score.json"))
        assert summary == metrics | {"judge": record["judge"]}
    assert "judge: stand-in: reward function" in printed


def test_a_second_call_makes_no_artifact(store: str, tmp_path: Path) -> None:
    file = write(tmp_path, "twice")
    first = evaluate(file, "judged", store=store)
    before = {stage: artifacts(store, stage) for stage in ("comparisons", "win-score", "responses")}
    assert evaluate(file, "judged", store=store) == first
    assert {stage: artifacts(store, stage) for stage in before} == before


def test_garbage_collection_keeps_all_artifacts_of_a_comparison(store: str, tmp_path: Path) -> None:
    (record,) = evaluate(write(tmp_path, "kept"), "judged", store=store)
    rows = judged(store, record)
    call("gc", "--grace", "0", "--store", store)
    assert judged(store, record) == rows and len(rows) == 6
    objects = ArtifactStore(open_objects(store))
    page = markdown(objects, "judged", record)
    assert "judge: stand-in: reward function tests.rewards:brevity**" in page


def test_another_model_is_compared_on_drawn_prompts_by_an_llm_judge(
    store: str, tiny: Path, tmp_path: Path, server: FakeJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other model answers in its own template, and a local server judges in place of GPT-4."""
    other = build_model(tmp_path / "other", seed=7)
    template = (other / "chat_template.jinja").read_text()
    (other / "chat_template.jinja").write_text("<|im_start|>" + template)
    rows = [{"conversations": [text]} for text in (*TEXTS[:9], TEXTS[0])]
    (tmp_path / "lima.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setenv("SOME_JUDGE", "a-long-enough-key")
    source = {"type": "file", "path": str(tmp_path / "lima.jsonl")}
    file = write(
        tmp_path,
        "paper",
        prompts={"type": "drawn", "source": source, "column": "conversations", "max_tokens": 64},
        baseline={"type": "model", "model": str(other)},
        generation=TINY,
        judge={
            "type": "openai",
            "model": "fake",
            "base_url": server.url,
            "api_key_env": "SOME_JUDGE",
            "price_per_million_prompt_tokens": 30.0,
            "price_per_million_completion_tokens": 60.0,
        },
    )
    server.failures = [(429, {"message": "slow down"}), (500, {"message": "oops"})]
    (record,) = evaluate(file, "judged", iteration=1, store=store)
    rows = judged(store, record)
    assert sorted(row["prompt"] for row in rows) == sorted(TEXTS[:9])
    assert len(server.asked) == record["metrics"]["requests"] == 18
    for row in rows:
        ours, theirs = score(row["policy_response"]), score(row["baseline_response"])
        assert row["outcome"] == ("tie" if ours == theirs else "win" if ours > theirs else "lose")
        asked = {(row["prompt"], row["policy_response"], row["baseline_response"])}
        asked |= {(row["prompt"], row["baseline_response"], row["policy_response"])}
        assert asked <= set(server.asked)
    metrics = record["metrics"]
    assert metrics["prompt_tokens"] == 1800
    assert metrics["cost"] == pytest.approx((1800 * 30 + metrics["completion_tokens"] * 60) / 1e6)
    assert record["judge"] == f"fake at {server.url}"
    assert "a-long-enough-key" not in repr(record)

    objects = ArtifactStore(open_objects(store))
    (templated,) = artifacts(store, "templated-prompts")
    manifest = objects.committed("templated-prompts", templated)
    assert manifest is not None and manifest.parents["policy"] == record["artifacts"]["baseline_model"]
    ids = read_table(objects.fetch(manifest.ref) / "prompts.parquet", PROMPTS)["prompt_token_ids"].to_pylist()
    assert all(row[0] == row[1] for row in ids), "the other template begins with the token twice"
    known = len(server.asked)
    assert evaluate(file, "judged", iteration=1, store=store) == [record]
    assert len(server.asked) == known


def test_a_policy_is_compared_with_responses_from_a_file(store: str, tmp_path: Path) -> None:
    rows = [{"prompt": text, "response": f"A word about {text}."} for text in TEXTS]
    (tmp_path / "given.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"type": "file", "path": str(tmp_path / "given.jsonl")}
    file = write(tmp_path, "given", baseline={"type": "responses", "source": source})
    (record,) = evaluate(file, "judged", store=store)
    assert {row["prompt"]: row["baseline_response"] for row in judged(store, record)}.items() <= {
        row["prompt"]: row["response"] for row in rows
    }.items()
    assert record["baseline"].startswith("responses of file ")

    (tmp_path / "given.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:3]))
    with pytest.raises(DataError, match=r"has no response for \d of 6 prompts, the first being"):
        evaluate(write(tmp_path, "missing", baseline={"type": "responses", "source": source}), "judged", store=store)
    twice = [rows[0], rows[0] | {"response": "Another."}]
    (tmp_path / "given.jsonl").write_text("".join(json.dumps(row) + "\n" for row in twice))
    with pytest.raises(DataError, match="two responses to the prompt"):
        evaluate(write(tmp_path, "double", baseline={"type": "responses", "source": source}), "judged", store=store)


def test_impossible_evaluations_are_refused_before_any_work(
    store: str, tmp_path: Path, server: FakeJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ABSENT_KEY", raising=False)
    before = {stage: artifacts(store, stage) for stage in ("comparisons", "responses", "prompts", "model")}
    file = write(tmp_path, "refused")
    with pytest.raises(OptuneError, match="has no run 'absent' to evaluate; its runs: judged"):
        evaluate(file, "absent", store=store)
    with pytest.raises(OptuneError, match="has no run 'judged' to evaluate; its runs: none"):
        evaluate(file, "judged", store=str(tmp_path / "nowhere"))
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(OptuneError, match="iteration=3: run 'judged' has the policies 0 to 2"):
        evaluate(file, "judged", iteration=3, store=store)
    drawn = {"type": "drawn", "source": {"type": "file", "path": str(tmp_path / "none.jsonl")}}
    judge = {"type": "openai", "model": "fake", "base_url": server.url, "api_key_env": "ABSENT_KEY"}
    keyless = write(tmp_path, "keyless", prompts=drawn, judge=judge)
    with pytest.raises(JudgeError, match=r"api_key_env='ABSENT_KEY': the environment has no such variable"):
        evaluate(keyless, "judged", store=store)
    with pytest.raises(DataError, match=r"none\.jsonl' cannot be read"):
        evaluate(keyless, "judged", overrides=["judge.api_key_env=null"], store=store)
    assert server.asked == []
    assert {stage: artifacts(store, stage) for stage in before} == before
    assert not [r for r in Ledger(open_objects(store), "judged").evaluations() if r["name"] in ("refused", "keyless")]


def test_another_configuration_under_the_same_name_is_refused(store: str, tmp_path: Path) -> None:
    file = write(tmp_path, "named")
    evaluate(file, "judged", store=store)
    with pytest.raises(ConfigDrift, match=r"judge\.tie_margin: 1\.0 → 0\.0"):
        evaluate(file, "judged", overrides=["judge.tie_margin=0.0"], store=store)


def test_kind_of_a_users_own_package_runs_from_the_command_line(store: str, tmp_path: Path) -> None:
    path = tmp_path / "lengths.yaml"
    path.write_text(yaml.safe_dump({"kind": "tests.kinds:MeanLength", "name": "lengths", "unit": "characters"}))
    command = ("evaluate", str(path), "--run", "judged", "--all", "--store", store)
    printed = call(*command)
    objects = ArtifactStore(open_objects(store))
    ledger = Ledger(objects.objects, "judged")
    records = ledger.evaluations("tests.kinds:MeanLength")
    assert [record["iteration"] for record in records] == [0, 1, 2]
    for record in records:
        shards = record["artifacts"]["answers"]
        texts = read_shards(objects, shards, "responses.parquet", RESPONSES)["response"].to_pylist()
        assert len(texts) == 6
        assert record["metrics"] == {"length": sum(map(len, texts)) / 6}
        assert f"{record['metrics']['length']:.2f}" in printed
        assert record["config"]["source"] == source_digest("tests.kinds:MeanLength", "kind")
    assert "Evaluation: lengths" in " ".join(printed.split()) and "characters" in printed

    answered = artifacts(store, "responses")
    assert call(*command) == printed
    assert artifacts(store, "responses") == answered
    with pytest.raises(ConfigDrift, match="unit: 'characters' → 'words'"):
        call(*command, "unit=words")
    shown = report(objects, ["judged"])
    assert "<h3>Evaluation: lengths</h3>" in shown and f"<td>{records[2]['metrics']['length']:.2f}</td>" in shown
    call("gc", "--grace", "0", "--store", store)
    assert artifacts(store, "responses") >= {shard.key for each in records for shard in each["artifacts"]["answers"]}
