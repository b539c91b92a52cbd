"""The configuration of a win-score evaluation (Eq. 7): which prompts, against whom, judged by whom."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from optune_core.data.model_folder import Model
from optune_core.data.prompts import Prompts
from optune_core.data.sources import Source
from optune_core.generation.section import Sampling
from optune_core.parts.names import EnvironmentVariable, Name
from optune_core.parts.section import Section
from optune_core.rewards.registry import REWARDS
from optune_core.rewards.reward import Reward

# ---------------------------------------------------------------- prompts


class HeldOutPrompts(Section):
    """The prompts that the run keeps for evaluation; its policies have answered them already."""

    type: Literal["held_out"] = "held_out"


class DrawnPrompts(Section):
    """Prompts of another source, such as the LIMA test set."""

    type: Literal["drawn"]
    source: Source
    """Where the rows are read from."""
    column: str = "prompt"
    """A string column, or chat messages whose last turn is the user's."""
    sample: int | None = Field(default=None, ge=1)
    """Prompts to judge on, drawn once with the evaluation's seed. Default: all."""
    max_tokens: int = Field(default=512, ge=1)
    """Longest prompt in tokens, the policy's chat template included."""
    too_long: Literal["drop", "error"] = "drop"
    """What becomes of a longer prompt: `drop` leaves it out and counts it, `error` stops."""

    def as_prompts(self) -> Prompts:
        """What the stage `prompts` draws."""
        return Prompts(
            source=self.source,
            column=self.column,
            sample=self.sample,
            max_tokens=self.max_tokens,
            too_long=self.too_long,
        )


# ---------------------------------------------------------------- baselines


class IterationBaseline(Section):
    """A policy of the same run."""

    type: Literal["iteration"]
    iteration: int = Field(ge=0)
    """0 is the policy that the run started from."""


class ModelBaseline(Model):
    """Another model, which answers the prompts in its own chat template."""

    type: Literal["model"]


class ResponsesBaseline(Section):
    """Responses from a file, one a prompt."""

    type: Literal["responses"]
    source: Source
    """Where the rows are read from."""
    prompt: str = "prompt"
    """Column of the prompts, as in the prompts' own source."""
    response: str = "response"
    """Column of the responses: text, or messages that end with the assistant's."""


# ---------------------------------------------------------------- judges


class OpenAIJudge(Section):
    """A chat model behind an OpenAI-compatible endpoint, asked with the paper's prompt at temperature 0."""

    type: Literal["openai"]
    model: str
    """Paper: GPT-4."""
    base_url: str = "https://api.openai.com/v1"
    """`http://127.0.0.1:8000/v1` for a local `vllm serve`."""
    api_key_env: EnvironmentVariable | None = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key; null for an endpoint that asks for none."""
    max_tokens: int = Field(default=1024, ge=8)
    """Longest judgement."""
    attempts: int = Field(default=3, ge=1)
    """How often a judgement is asked for until its scores can be read; then it counts as malformed."""
    concurrency: int = Field(default=8, ge=1)
    """Requests at a time."""
    timeout_seconds: float = Field(default=120.0, gt=0.0)
    """For one request."""
    retries: int = Field(default=8, ge=0)
    """How often a request that met 429, a 5xx or a time-out is sent again, with growing pauses."""
    price_per_million_prompt_tokens: float | None = Field(default=None, ge=0.0)
    """What the endpoint charges, in whatever currency. Default: unknown, and so is the cost."""
    price_per_million_completion_tokens: float | None = Field(default=None, ge=0.0)
    """As `price_per_million_prompt_tokens`, for what the judge answers."""

    HOW: ClassVar[tuple[str, ...]] = ("concurrency", "timeout_seconds", "retries")
    PRICES: ClassVar = ("price_per_million_prompt_tokens", "price_per_million_completion_tokens")
    """Fields that change no judgement, only what it cost."""

    @property
    def tie_margin(self) -> float:
        """Equal scores alone are a tie."""
        return 0.0

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
    """The reward whose scores decide."""
    tie_margin: float = Field(default=0.0, ge=0.0)
    """Rewards that differ by no more than this are a tie."""

    @model_validator(mode="after")
    def _reward_is_ready(self) -> StandIn:
        if self.reward.trained_first:
            raise ValueError(
                f"reward.type={self.reward.type!r} is trained by a run: name the trained model as classifier"
            )
        return self


# ---------------------------------------------------------------- the whole


class EvaluationConfig(Section):
    """Everything that determines a win score but the policies of the run it is asked of."""

    name: Name
    """Names the comparison in the run's records: one name, one configuration."""
    seed: int = Field(default=0, ge=0)
    """Decides the draw of the prompts and the sampling of responses."""
    prompts: Annotated[HeldOutPrompts | DrawnPrompts, Field(discriminator="type")]
    """The prompts that are answered and judged."""
    baseline: Annotated[IterationBaseline | ModelBaseline | ResponsesBaseline, Field(discriminator="type")]
    """Whose responses the policies' are compared with."""
    generation: Sampling | None = None
    """For responses that the run does not have yet. Default: as the run samples."""
    judge: Annotated[OpenAIJudge | StandIn, Field(discriminator="type")]
    """What decides which of two responses is better."""
    shard_size: int = Field(default=16, ge=1)
    """Prompts that are judged and committed together: what at most is asked for again after a kill, but for the
    requests on their way."""

    @model_validator(mode="after")
    def _generation_is_read(self) -> EvaluationConfig:
        asks = isinstance(self.prompts, DrawnPrompts) or isinstance(self.baseline, ModelBaseline)
        if self.generation is not None and not asks:
            raise ValueError(
                f"generation is not read: prompts of type 'held_out' with a baseline of type {self.baseline.type!r} "
                "need no new responses. Leave it out"
            )
        return self
