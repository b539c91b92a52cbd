"""The paper's rating prompt, and the scores in a reply to it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

import yaml

_SCORES = re.compile(r"(\d+(?:\.\d+)?)[ \t,]+(\d+(?:\.\d+)?)")
_LOWEST, _HIGHEST = 1.0, 10.0


@cache
def rating_prompt() -> Mapping[str, str]:
    """Return the paper's prompt: `system`, and `user` with the fields question, answer_1 and answer_2."""
    text = files("optune_core.evaluation.win_score").joinpath("rating_prompt.yaml").read_text(encoding="utf-8")
    prompt: dict[str, str] = yaml.safe_load(text)
    return prompt


def parse_scores(reply: str) -> tuple[float, float]:
    """Return the two scores on the first line of a judge's reply.

    Raises:
        ValueError: it does not begin with two numbers from 1 to 10 on a line of their own; the message says so.
    """
    first = reply.strip().partition("\n")[0].strip()
    found = _SCORES.fullmatch(first)
    if found is None:
        raise ValueError(f"the first line is {first[:80]!r}, not two scores separated by a space")
    scores = float(found[1]), float(found[2])
    if not all(_LOWEST <= score <= _HIGHEST for score in scores):
        raise ValueError(f"the scores {first!r} are not both from 1 to 10")
    return scores


def rating_messages(question: str, answers: tuple[str, str]) -> list[dict[str, str]]:
    """Return the question to a judge about two answers, as chat messages."""
    prompt = rating_prompt()
    user = prompt["user"].format(question=question, answer_1=answers[0], answer_2=answers[1])
    return [{"role": "system", "content": prompt["system"]}, {"role": "user", "content": user}]
