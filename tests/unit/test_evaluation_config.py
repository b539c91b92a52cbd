"""Evaluation files: mistakes are named all at once, keys stay in the environment, and every shipped file loads."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from optune_core.data.prompts import as_messages
from optune_core.errors import ConfigError, JudgeError
from optune_core.evaluation.alpaca_eval.config import AlpacaEval
from optune_core.evaluation.endpoint import api_key
from optune_core.evaluation.harness.config import Harness
from optune_core.evaluation.loading import load_evaluation
from optune_core.evaluation.win_score.config import WinScore
from optune_core.evaluation.win_score.sections import OpenAIJudge
from tests.kinds import MeanLength

GOOD = """
kind: win_score
name: small
prompts: {type: held_out}
baseline: {type: iteration, iteration: 0}
judge: {type: openai, model: gpt-4}
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "evaluation.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "path", [*sorted(Path("configs/evaluation").glob("*.yaml")), Path("configs/reproduction/judge.yaml")], ids=str
)
def test_shipped_evaluations_load(path: Path) -> None:
    config = load_evaluation(path)
    assert config.name == path.stem
    kinds = {"alpaca-eval-2": AlpacaEval, "table-5": Harness}
    assert type(config) is kinds.get(path.stem, WinScore)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("", r"kind: required: win_score, alpaca_eval, harness, or package\.module:Name of your own"),
        ("kind: elo", r"kind 'elo' is no kind of evaluation: use win_score, alpaca_eval, harness, or package\.module"),
        ("kind: nowhere.at_all:Kind", r"'nowhere\.at_all:Kind' cannot be imported"),
        ("kind: tests.rewards:brevity", r"'tests\.rewards:brevity' .* derive its class from Evaluation"),
    ],
)
def test_unknown_kind_is_refused_with_the_known_ones(tmp_path: Path, kind: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"evaluation\.yaml: 1 problem\n  - .*{message}"):
        load_evaluation(write(tmp_path, f"{kind}\nname: small\n"))


def test_kind_of_a_users_own_package_has_its_own_fields_and_the_digest_of_its_source(tmp_path: Path) -> None:
    path = write(tmp_path, "kind: tests.kinds:MeanLength\nname: lengths\nunit: characters\n")
    config = load_evaluation(path, ["unit=words"])
    assert isinstance(config, MeanLength) and config.unit == "words"
    assert config.identity() == {
        "kind": "tests.kinds:MeanLength",
        "name": "lengths",
        "seed": 0,
        "unit": "words",
        "source": hashlib.sha256(Path("tests/kinds.py").read_bytes()).hexdigest(),
    }
    with pytest.raises(ConfigError, match=r"unit = 'lines'"):
        load_evaluation(path, ["unit=lines"])


def test_the_shipped_evaluation_is_that_of_the_paper() -> None:
    config = load_evaluation("configs/evaluation/lima-gpt4.yaml")
    assert isinstance(config, WinScore)
    assert (config.judge.type, config.judge.tie_margin) == ("openai", 0)
    assert config.baseline.model_dump() == {
        "type": "model",
        "model": "HuggingFaceH4/zephyr-7b-beta",
        "revision": None,
    }


def test_all_problems_are_reported_together(tmp_path: Path) -> None:
    text = """
kind: win_score
name: Bad Name
prompts: {type: drawn, colum: text, source: {type: file}}
baseline: {type: iteration, iteration: -1}
judge: {type: openai, concurrency: 0, temperature: 0.5}
"""
    with pytest.raises(ConfigError) as caught:
        load_evaluation(write(tmp_path, text))
    problems = "\n".join(caught.value.problems)
    for expected in (
        "name = 'Bad Name'",
        "prompts.colum: unknown key",
        "prompts.source.path: required",
        "baseline.iteration = -1",
        "judge.model: required",
        "judge.concurrency = 0",
        "judge.temperature: unknown key",
    ):
        assert expected in problems
    assert len(caught.value.problems) == 7


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["prompts.type=all"], r"prompts: .*'held_out', 'drawn'"),
        (["generation={}"], "generation is not read"),
        (["judge.price_per_million_prompt_tokens=30"], "is given alone"),
        (["judge.api_key_env=my key"], "not the name of an environment variable"),
        (["judge.api_key_env=sk-0123456789abcdefghij0123"], "not the name of an environment variable"),
        (["judge={type: reward, reward: {type: function, function: nowhere}}"], r"judge\.reward\.function = 'nowhere'"),
    ],
)
def test_impossible_settings_are_refused(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_evaluation(write(tmp_path, GOOD), overrides)
    assert "0123456789" not in str(caught.value), "a key that was put there by mistake is not shown"


def test_the_key_comes_from_the_variable_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = OpenAIJudge(type="openai", model="m", api_key_env="SOME_JUDGE")
    monkeypatch.setenv("SOME_JUDGE", "the-key")
    assert api_key(judge, "judge") == "the-key"
    monkeypatch.delenv("SOME_JUDGE")
    with pytest.raises(JudgeError, match=r"judge\.api_key_env='SOME_JUDGE': .*no such variable.*api_key_env=null"):
        api_key(judge, "judge")
    assert api_key(OpenAIJudge(type="openai", model="m", api_key_env=None), "judge") is None


def test_a_list_of_strings_is_a_conversation_that_the_user_begins() -> None:
    user, assistant = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    assert as_messages(["a"]) == as_messages(["a", "b"]) == [user]
    assert as_messages(["a", "b", "c"]) == [user, assistant, {"role": "user", "content": "c"}]
    assert as_messages([" ", "b"]) == "empty"
    assert as_messages([]) == "no_user_turn"
