"""Base of all judges: a judge sees two answers, but not which policies gave them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Literal, Protocol

from pydantic import BaseModel, Field

from optune_core.evaluation.win_score.sections import OpenAIJudge
from optune_core.rewards import ReadyReward


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
    """Requests and tokens of a judgement."""

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
    """A reward in a judge's place: the answer with the higher reward wins. Its verdicts are labelled as a stand-in's
    wherever they are shown."""

    type: Literal["reward"] = "reward"
    reward: ReadyReward
    tie_margin: float

    @property
    def description(self) -> str:
        """The judge as a reader of its verdicts must know it."""
        return f"stand-in: reward {self.reward.reward.label}"


JudgeSpec = Annotated[OpenAIJudge | RewardJudge, Field(discriminator="type")]
