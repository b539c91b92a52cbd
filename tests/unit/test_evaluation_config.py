"""Evaluation files: mistakes are named all at once, keys stay in the environment, and every shipped file loads."""

from __future__ import annotations

from pathlib import Path

import pytest

from optune_core.config import load_alpaca, load_evaluation
from optune_core.data.prompts import as_messages
from optune_core.errors import ConfigError, JudgeError
from optune_core.evaluation.win_score.config import OpenAIJudge
from optune_core.evaluation.win_score.judge import api_key

GOOD = """
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
    load = load_alpaca if path.stem == "alpaca-eval-2" else load_evaluation
    assert load(path).name == path.stem


def test_the_shipped_evaluation_is_that_of_the_paper() -> None:
    config = load_evaluation("configs/evaluation/lima-gpt4.yaml")
    assert (config.judge.type, config.judge.tie_margin) == ("openai", 0)
    assert config.baseline.model_dump() == {
        "type": "model",
        "model": "HuggingFaceH4/zephyr-7b-beta",
        "revision": None,
    }


def test_all_problems_are_reported_together(tmp_path: Path) -> None:
    text = """
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
    assert api_key(judge) == "the-key"
    monkeypatch.delenv("SOME_JUDGE")
    with pytest.raises(JudgeError, match=r"judge\.api_key_env='SOME_JUDGE': .*no such variable.*api_key_env=null"):
        api_key(judge)
    assert api_key(OpenAIJudge(type="openai", model="m", api_key_env=None)) is None


def test_a_list_of_strings_is_a_conversation_that_the_user_begins() -> None:
    user, assistant = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    assert as_messages(["a"]) == as_messages(["a", "b"]) == [user]
    assert as_messages(["a", "b", "c"]) == [user, assistant, {"role": "user", "content": "c"}]
    assert as_messages([" ", "b"]) == "empty"
    assert as_messages([]) == "no_user_turn"
