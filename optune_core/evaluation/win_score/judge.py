"""What the stage asks of a judge, and what a judge is told: two answers, and not whose they are."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Literal, Protocol

from pydantic import BaseModel, Field

from optune_core.errors import JudgeError
from optune_core.evaluation.alpaca_eval.config import Annotator
from optune_core.evaluation.win_score.config import OpenAIJudge
from optune_core.rewards import ReadyReward
from optune_core.storage import ArtifactStore


@dataclass(frozen=True)
class Pair:
    """Two answers to a prompt, in the order in which they are judged."""

    index: int
    """The caller's; comes back with the rating."""
    prompt: str
    messages: list[dict[str, str]]
    answers: tuple[str, str]


@dataclass(frozen=True)
class Usage:
    """What judging took."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True)
class Rating:
    """A judge's scores for the answers of a pair, in their order."""

    index: int
    scores: tuple[float, float] | None
    """None where the judge gave none that can be read, as often as it was asked."""
    explanation: str
    """The judge's own words; where there are no scores, its last reply."""
    problem: str | None = None
    """Why there are no scores."""
    usage: Usage = field(default_factory=Usage)


class Judge(Protocol):
    def rate(self, pairs: Iterable[Pair]) -> Iterator[Rating]:
        """Rate all pairs, in any order, taking no more of them at a time than it has use for."""
        ...


class RewardJudge(BaseModel):
    """A reward in a judge's place: what it likes wins. A stand-in, and labelled so wherever its verdicts show."""

    type: Literal["reward"] = "reward"
    reward: ReadyReward
    tie_margin: float


JudgeSpec = Annotated[OpenAIJudge | RewardJudge, Field(discriminator="type")]


def open_judge(judge: OpenAIJudge | RewardJudge, store: ArtifactStore) -> Judge:
    """Make a judge ready.

    Args:
        judge: what to open.
        store: holds the model of a reward, if it uses one.

    Raises:
        JudgeError: the variable that holds its key is not set.
    """
    if isinstance(judge, OpenAIJudge):
        from optune_core.evaluation.win_score.chat import ChatJudge

        return ChatJudge(judge)
    from optune_core.evaluation.win_score.stand_in import StandInJudge

    return StandInJudge(judge.reward.open(store))


def api_key(judge: OpenAIJudge | Annotator, section: str = "judge") -> str | None:
    """The key, from the environment variable that the configuration names; None where it names none.

    Args:
        section: where in the configuration it stands.

    Raises:
        JudgeError: it is not set.
    """
    if judge.api_key_env is None:
        return None
    key = os.environ.get(judge.api_key_env)
    if not key:
        raise JudgeError(
            f"{section}.api_key_env={judge.api_key_env!r}: the environment has no such variable. Put the key of "
            f"{judge.base_url} into it, or set {section}.api_key_env=null for an endpoint that asks for none"
        )
    return key


def describe_judge(judge: OpenAIJudge | RewardJudge) -> str:
    """The judge as a reader of its verdicts must know it."""
    if isinstance(judge, OpenAIJudge):
        return f"{judge.model} at {judge.base_url}"
    return f"stand-in: reward {judge.reward.reward.label}"
