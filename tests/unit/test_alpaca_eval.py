"""AlpacaEval 2 without its library: configuration, references, calibration, annotators, records."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from optune_core.errors import ConfigDrift, ConfigError, DataError, JudgeError, OptuneError
from optune_core.evaluation.alpaca_eval import annotator_files
from optune_core.evaluation.alpaca_eval.annotator_files import describe_annotator, find_annotator, require_library
from optune_core.evaluation.alpaca_eval.config import AlpacaEval
from optune_core.evaluation.alpaca_eval.data import check_calibration, generators, read_references
from optune_core.evaluation.alpaca_eval.sections import Instructions
from optune_core.evaluation.endpoint import api_key
from optune_core.evaluation.loading import load_evaluation
from optune_core.evaluation.records import check_drift
from optune_core.storage import ArtifactStore, Ledger, Work, open_objects
from optune_core.storage.gc import delete_garbage, find_garbage

HEAD = "model,preference,index,std_delta_len,instruction_difficulty,not_gamed_baseline\n"
ROWS = [{"instruction": f"Do {i}.", "output": f"Done {i}.", "generator": "gpt4_1106_preview"} for i in range(3)]

needs_library = pytest.mark.skipif(find_spec("alpaca_eval") is None, reason="optune[alpaca] is not installed")


def instructions(folder: Path, rows: list[dict[str, Any]], name: str = "references.json") -> Instructions:
    """References as they are published: one JSON array."""
    (folder / name).write_text(json.dumps(rows, indent=2))
    return Instructions.model_validate({"source": {"type": "file", "path": str(folder / name)}})


def calibration(folder: Path, indexes: list[int]) -> str:
    rows = [f"{model},0.5,{index},0.1,0.2,False\n" for model in ("concise", "verbose") for index in indexes]
    (folder / "df_gamed.csv").write_text(HEAD + "".join(rows))
    return str(folder / "df_gamed.csv")


def test_the_papers_evaluation_is_alpaca_eval_2() -> None:
    config = load_evaluation("configs/evaluation/alpaca-eval-2.yaml")
    assert isinstance(config, AlpacaEval)
    assert config.annotator.config == "weighted_alpaca_eval_gpt4_turbo"
    assert config.prompts.sample is None and config.prompts.too_long == "error", "all 805"


def test_all_problems_are_reported_together(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(
        "kind: alpaca_eval\nname: Bad Name\nprompts: {source: {type: file}, colum: x}\n"
        "annotator: {api_key_env: sk-1, attempts: 0}\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_evaluation(tmp_path / "bad.yaml")
    problems = "\n".join(caught.value.problems)
    for expected in (
        "name = 'Bad Name'",
        "prompts.source.path: required",
        "prompts.colum: unknown key",
        "annotator.api_key_env = 'sk-1'",
        "annotator.attempts = 0",
    ):
        assert expected in problems


def test_references_keep_the_row_numbers_of_the_calibration(tmp_path: Path) -> None:
    references = read_references(instructions(tmp_path, ROWS))
    assert [(r.index, r.output) for r in references.values()] == [(i, f"Done {i}.") for i in range(3)]
    assert list(references) == ["Do 0.", "Do 1.", "Do 2."]
    assert generators(references) == "gpt4_1106_preview"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([*ROWS, ROWS[1]], r"the instruction 'Do 1\.' in rows 1 and 3"),
        ([ROWS[0], ROWS[1] | {"output": None}], "row 1: output = None is no text"),
        ([{"instruction": "Do."}], "no column 'output'"),
        ([1, 2], "cannot be parsed"),
    ],
)
def test_unusable_references_are_refused_by_row(tmp_path: Path, rows: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_references(instructions(tmp_path, rows))


def test_a_calibration_for_other_instructions_is_refused(tmp_path: Path) -> None:
    assert check_calibration(calibration(tmp_path, [0, 1, 2]), 3).startswith(HEAD.encode())
    with pytest.raises(DataError, match=r"is for 3 instructions, prompts\.source has 4"):
        check_calibration(calibration(tmp_path, [0, 1, 2]), 4)
    (tmp_path / "other.csv").write_text("preference,index\n0.5,0\n")
    with pytest.raises(DataError, match=r"no column instruction_difficulty, model.*df_gamed\.csv"):
        check_calibration(str(tmp_path / "other.csv"), 1)


def test_a_missing_calibration_is_reported_with_the_download(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be read: No such file(.|\n)*download df_gamed\.csv"):
        check_calibration(str(tmp_path / "absent.csv"), 3)


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(annotator_files, "find_spec", lambda name: None)
    with pytest.raises(OptuneError, match=r"install optune\[alpaca\]"):
        require_library()
    with pytest.raises(OptuneError, match=r"install optune\[alpaca\]"):
        find_annotator("weighted_alpaca_eval_gpt4_turbo")


@needs_library
def test_an_annotator_by_name_equals_its_copy_in_a_folder(tmp_path: Path) -> None:
    named = find_annotator("weighted_alpaca_eval_gpt4_turbo")
    (each,) = named.configs.values()
    assert "I require a leaderboard for various large language models" in each["prompt_template"]
    folder = tmp_path / named.name
    folder.mkdir()
    (folder / "prompt.txt").write_text(each["prompt_template"])
    configs = {named.name: each | {"prompt_template": f"{named.name}/prompt.txt"}}
    (folder / "configs.yaml").write_text(json.dumps(configs))
    assert find_annotator(str(folder)) == named
    config = AlpacaEval.model_validate({"name": "a", "prompts": {"source": {"type": "file", "path": "x.json"}}})
    assert describe_annotator(named, config.annotator) == (
        "weighted_alpaca_eval_gpt4_turbo (gpt-4-1106-preview at https://api.openai.com/v1)"
    )


@needs_library
def test_unusable_annotators_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptuneError, match=r"'absent' is neither the name of an annotator of alpaca-eval nor a folder"):
        find_annotator("absent")
    with pytest.raises(JudgeError, match="is asked by 'anthropic_completions'"):
        find_annotator("claude")
    monkeypatch.setenv("SOME_API_KEY", "a-long-enough-key")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "configs.yaml").write_text(
        "own: {prompt_template: x, completions_kwargs: {model_name: m, extra_headers: {x: a-long-enough-key}}}\n"
    )
    with pytest.raises(JudgeError, match=r"own\.completions_kwargs\.extra_headers\.x: holds a secret"):
        find_annotator(str(tmp_path / "own"))


def test_a_missing_key_is_reported_by_its_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ABSENT_KEY", raising=False)
    source = {"source": {"type": "file", "path": "x.json"}}
    config = AlpacaEval.model_validate({"name": "a", "prompts": source, "annotator": {"api_key_env": "ABSENT_KEY"}})
    with pytest.raises(JudgeError, match=r"annotator\.api_key_env='ABSENT_KEY': the environment has no such variable"):
        api_key(config.annotator, "annotator")


def test_records_are_kept_and_another_configuration_of_their_name_is_refused(tmp_path: Path) -> None:
    store = ArtifactStore(open_objects(str(tmp_path / "store")))
    ledger = Ledger(store.objects, "r")
    config = AlpacaEval.model_validate({"name": "a", "prompts": {"source": {"type": "file", "path": "x.json"}}})
    ledger.open(config, {})
    with store.scratch() as scratch:
        (scratch / "x").write_text("x")
        kept = store.commit(Work("alpaca-win-rate", 1, {}), scratch)
    record = {
        "kind": "alpaca_eval",
        "name": "a",
        "config": config.identity(),
        "artifacts": {"summary": kept.ref},
    }
    for t in (1, 0):
        ledger.commit_evaluation("a", t, record | {"iteration": t})
    assert [each["iteration"] for each in ledger.evaluations("alpaca_eval")] == [0, 1]
    assert ledger.evaluations("win_score") == []
    delete_garbage(store, find_garbage(store, grace_seconds=-1))
    assert store.committed(kept.ref.stage, kept.ref.key) is not None

    faster = config.model_copy(update={"annotator": config.annotator.model_copy(update={"concurrency": 1})})
    check_drift(ledger, faster)
    check_drift(ledger, config.model_copy(update={"seed": 3, "name": "b"}))
    with pytest.raises(ConfigDrift, match="seed: 0 → 3"):
        check_drift(ledger, config.model_copy(update={"seed": 3}))
