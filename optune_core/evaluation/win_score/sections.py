"""Sections of a win score: the baseline that policies are compared with, and the judge."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from optune_core.data.model_folder import Model
from optune_core.data.sources import Source, describe
from optune_core.evaluation.endpoint import Endpoint
from optune_core.parts.section import Section
from optune_core.rewards.registry import REWARDS
from optune_core.rewards.reward import Reward


class IterationBaseline(Section):
    """A policy of the same run."""

    type: Literal["iteration"]
    iteration: int = Field(ge=0)
    """0 is the policy that the run started from."""

    @property
    def description(self) -> str:
        return f"policy {self.iteration} of the run"


class ModelBaseline(Model):
    """Another model, which answers the prompts in its own chat template."""

    type: Literal["model"]

    @property
    def description(self) -> str:
        return f"model {self.model}"


class ResponsesBaseline(Section):
    """Responses from a file, one a prompt."""

    type: Literal["responses"]
    source: Source
    """Data set that holds the baseline's responses."""
    prompt: str = "prompt"
    """Column of the prompts, as in the prompts' own source."""
    response: str = "response"
    """Column of the responses: text, or messages that end with the assistant's."""

    @property
    def description(self) -> str:
        return f"responses of {describe(self.source)}"


class OpenAIJudge(Endpoint):
    """A chat model behind an OpenAI-compatible endpoint, asked with the paper's prompt at temperature 0."""

    type: Literal["openai"]
    model: str
    """Paper: GPT-4."""
    max_tokens: int = Field(default=1024, ge=8)
    """Longest judgement."""
    price_per_million_prompt_tokens: float | None = Field(default=None, ge=0.0)
    """Price of the tokens of prompts, in any currency. Default: unknown, and so is the cost."""
    price_per_million_completion_tokens: float | None = Field(default=None, ge=0.0)
    """Price of the tokens of replies, in the same currency."""

    PRICES: ClassVar = ("price_per_million_prompt_tokens", "price_per_million_completion_tokens")
    """Fields that change no judgement, only its cost."""

    @property
    def prices(self) -> tuple[float, float] | None:
        """Price of a million prompt tokens and of a million completion tokens; None where unknown."""
        prompt, completion = self.price_per_million_prompt_tokens, self.price_per_million_completion_tokens
        return None if prompt is None or completion is None else (prompt, completion)

    @property
    def tie_margin(self) -> float:
        """Only equal scores are a tie."""
        return 0.0

    @property
    def description(self) -> str:
        """The judge as a reader of its verdicts must know it."""
        return f"{self.model} at {self.base_url}"

    @model_validator(mode="after")
    def _both_prices_or_none(self) -> OpenAIJudge:
        given = [name for name in self.PRICES if getattr(self, name) is not None]
        if len(given) == 1:
            raise ValueError(f"{given[0]} is given alone: a cost needs {' and '.join(self.PRICES)}")
        return self


class StandIn(Section):
    """A reward in a judge's place, for machines that reach no judge. Its verdicts are labelled as a stand-in's."""

    type: Literal["reward"]
    reward: Annotated[Reward, REWARDS]
    """Reward whose higher score wins."""
    tie_margin: float = Field(default=0.0, ge=0.0)
    """Rewards that differ by no more than this are a tie."""

    @property
    def prices(self) -> None:
        """A reward charges nothing that is known."""
        return None

    @model_validator(mode="after")
    def _reward_is_ready(self) -> StandIn:
        if self.reward.trained_first:
            raise ValueError(
                f"reward.type={self.reward.type!r} is trained by a run: name the trained model as classifier"
            )
        return self
