"""An AlpacaEval evaluation of a run, from the stages to the report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from flows.cli.commands import app
from optune_core.data.schemas import ANNOTATIONS, ANSWERS, write_table
from optune_core.data.shards import read_shards
from optune_core.errors import DataError, JudgeError, OptuneError
from optune_core.evaluation.alpaca_eval.sections import Annotator, Instructions
from optune_core.reports.page import report
from optune_core.storage import ArtifactStore, Ledger, Work, open_objects
from tests.fake_annotator import KEY, longer
from tests.fake_judge import FakeJudge
from tests.integration.alpaca.calibration import logistic, write_calibration
from tests.tiny import PROMPTS as TEXTS
from tests.tiny import write_config

pytest.importorskip("alpaca_eval", reason="optune[alpaca] is not installed")

pytestmark = pytest.mark.slow


def references(folder: Path, count: int) -> Instructions:
    rows = [
        {"dataset": "tiny", "instruction": text, "output": "Words about it, " * (1 + number % 4), "generator": "writer"}
        for number, text in enumerate(TEXTS[:count])
    ]
    (folder / "references.json").write_text(json.dumps(rows, indent=1))
    return Instructions.model_validate({"source": {"type": "file", "path": str(folder / "references.json")}})


def test_an_interrupted_annotation_repeats_no_request_that_was_committed(server: FakeJudge, tmp_path: Path) -> None:
    import pyarrow as pa

    from optune_core.evaluation.alpaca_eval import annotations
    from optune_core.evaluation.alpaca_eval.annotator_files import find_annotator

    store = ArtifactStore(open_objects(str(tmp_path / "store")))
    rows = [
        {"prompt_id": str(i), "prompt": text, "messages": [], "sample": 0, "response": f"Answer {i} " * (i + 1)}
        for i, text in enumerate(TEXTS[:6])
    ]
    with store.scratch() as scratch:
        write_table(pa.Table.from_pylist(rows[::-1], schema=ANSWERS), ANSWERS, scratch / "responses.parquet")
        answers = store.commit(Work("responses", 1, {}), scratch)
    spec = annotations.Spec(
        annotator=Annotator.model_validate({"base_url": server.url, "api_key_env": "SOME_ANNOTATOR", "concurrency": 1}),
        files=find_annotator("weighted_alpaca_eval_gpt4_turbo"),
        prompts=references(tmp_path, 8),
        answered=6,
        shard_size=2,
        policy=[answers.ref],
    )
    (tmp_path / "spec.json").write_text(spec.model_dump_json())
    command = [sys.executable, "-m", "optune_core.stages.worker", "alpaca-annotations", str(tmp_path / "spec.json")]
    environment = os.environ | {"SOME_ANNOTATOR": KEY}
    refuse = 3

    def reply(instruction: str, first: str, second: str) -> str:
        if len(server.asked) == refuse:
            server.failures = [(400, {"message": "no more"})] * 5
        return longer(instruction, first, second)

    server.reply = reply
    ended = subprocess.run([*command, store.objects.url], capture_output=True, text=True, timeout=600, env=environment)
    assert "no more" in json.loads(ended.stdout.splitlines()[-1])["error"]["message"]
    works = annotations.works(store, spec)
    assert [store.find(work) is not None for work in works] == [True, False, False]
    server.failures, refuse = [], -1
    before = len(server.asked)
    done = subprocess.run([*command, store.objects.url], capture_output=True, text=True, timeout=600, env=environment)
    assert json.loads(done.stdout.splitlines()[-1]) == {"done": True}, done.stderr
    assert sorted(instruction for instruction, *_ in server.asked[before:]) == sorted(TEXTS[2:6])
    committed = [store.find(work) for work in works]
    shards = [manifest.ref for manifest in committed if manifest is not None]
    table = read_shards(store, shards, "annotations.parquet", ANNOTATIONS).to_pylist()
    assert [row["index"] for row in table] == list(range(6)), "in the order of the references"
    assert [row["policy_output"] for row in table] == [row["response"] for row in rows]
    for row in table:
        gap = len(row["policy_output"]) - len(row["reference_output"])
        assert row["preference"] == pytest.approx(1 + logistic(gap / 20))
    assert KEY not in ended.stdout + ended.stderr + done.stdout + done.stderr
    stored = b"".join(file.read_bytes() for file in (tmp_path / "store").rglob("*") if file.is_file())
    assert KEY.encode() not in stored


@pytest.fixture(scope="module")
def store(tiny: Path, prefect_server: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store with the run `judged`: one iteration."""
    from flows.run import optune

    store = str(tmp_path_factory.mktemp("alpaca") / "store")
    optune(str(write_config(tiny, name="judged", replaced={"iterations": 1})), store=store)
    return store


def write_evaluation(folder: Path, server: FakeJudge, **changes: Any) -> str:
    config = {
        "kind": "alpaca_eval",
        "name": "tiny-alpaca",
        "prompts": {**references(folder, 12).model_dump(include={"source"}), "sample": 9, "max_tokens": 64},
        "calibration": str(write_calibration(folder / "df_gamed.csv", 12)),
        "generation": {"engine": {"type": "transformers", "dtype": "float32"}, "max_tokens": 10, "shard_size": 4},
        "annotator": {"base_url": server.url, "api_key_env": "SOME_ANNOTATOR"},
        "shard_size": 4,
    }
    (folder / "alpaca.yaml").write_text(yaml.safe_dump(config | changes))
    return str(folder / "alpaca.yaml")


def test_all_policies_of_a_run_are_annotated_recorded_and_reported(
    store: str, server: FakeJudge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_ANNOTATOR", KEY)
    file = write_evaluation(tmp_path, server)
    result = CliRunner().invoke(app, ["evaluate", file, "--run", "judged", "--all", "--store", store])
    assert result.exit_code == 0, result.output
    objects = ArtifactStore(open_objects(store))
    ledger = Ledger(objects.objects, "judged")
    records = ledger.evaluations("alpaca_eval")
    assert [record["iteration"] for record in records] == [0, 1]
    trained = ledger.iteration(0)
    assert trained is not None and records[1]["policy"] == trained["artifacts"]["policy"]
    for record in records:
        shards = record["artifacts"]["annotations"]
        rows = read_shards(objects, shards, "annotations.parquet", ANNOTATIONS).to_pylist()
        assert len(rows) == record["prompts"] == record["metrics"]["total"] == 9
        for row in rows:
            assert row["instruction"] == TEXTS[row["index"]]
            gap = len(row["policy_output"]) - len(row["reference_output"])
            assert row["preference"] == pytest.approx(1 + logistic(gap / 20))
        assert record["metrics"]["win_rate"] == pytest.approx(100 * np.mean([row["preference"] - 1 for row in rows]))
        assert record["metrics"]["requests"] == 9
        assert record["metrics"]["cost"] == pytest.approx(record["metrics"]["tokens"] * 1e-5)
        assert record["reference"] == "writer"
        assert record["annotator"] == f"weighted_alpaca_eval_gpt4_turbo (gpt-4-1106-preview at {server.url})"
        assert f"{record['metrics']['lc_win_rate']:.2f}" in result.output
    assert "Against writer, 9 prompts" in result.output
    assert KEY not in result.output + repr(records)

    asked = len(server.asked)
    again = CliRunner().invoke(app, ["evaluate", file, "--run", "judged", "--all", "--store", store])
    assert again.exit_code == 0 and len(server.asked) == asked == 18, "a second call finds everything"
    assert ledger.evaluations("alpaca_eval") == records
    page = report(objects, ["judged"])
    assert "AlpacaEval 2: tiny-alpaca" in page and f"{records[1]['metrics']['lc_win_rate']:.2f}" in page
    shards = [shard for shard in records[0]["artifacts"]["annotations"]]
    annotations = read_shards(objects, shards, "annotations.parquet", ANNOTATIONS)
    assert len(annotations) == 9
    assert CliRunner().invoke(app, ["gc", "--grace", "0", "--store", store]).exit_code == 0
    assert read_shards(objects, shards, "annotations.parquet", ANNOTATIONS).equals(annotations)


def test_impossible_evaluations_are_refused_before_any_work(
    store: str, server: FakeJudge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.evaluate import evaluate

    file = write_evaluation(tmp_path, server, name="impossible")
    monkeypatch.delenv("SOME_ANNOTATOR", raising=False)
    with pytest.raises(JudgeError, match=r"annotator\.api_key_env='SOME_ANNOTATOR'"):
        evaluate(file, "judged", store=store)
    monkeypatch.setenv("SOME_ANNOTATOR", KEY)
    with pytest.raises(OptuneError, match="has no run 'absent'"):
        evaluate(file, "absent", store=store)
    with pytest.raises(DataError, match=r"download df_gamed\.csv"):
        evaluate(file, "judged", overrides=["calibration=absent.csv"], store=store)
    (tmp_path / "short.csv").write_text((tmp_path / "df_gamed.csv").read_text().splitlines()[0] + "\n")
    with pytest.raises(DataError, match="is for 0 instructions"):
        evaluate(file, "judged", overrides=[f"calibration={tmp_path / 'short.csv'}"], store=store)
    assert server.asked == []


def test_an_annotator_without_any_readable_annotation_is_an_error(
    store: str, server: FakeJudge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.evaluate import evaluate

    monkeypatch.setenv("SOME_ANNOTATOR", KEY)
    server.reply = lambda *_: json.dumps({"Sorry": -0.1})
    file = write_evaluation(
        tmp_path, server, name="mute", annotator={"base_url": server.url, "api_key_env": None, "attempts": 1}
    )
    with pytest.raises(JudgeError, match=r"all 9 annotations are malformed, such as: .*Sorry"):
        evaluate(file, "judged", iteration=0, store=store)
