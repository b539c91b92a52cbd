"""The configuration of AlpacaEval 2: the instructions with their reference outputs, and who annotates."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from optune_core.evaluation.win_score.config import DrawnPrompts
from optune_core.generation.section import Sampling
from optune_core.parts.names import EnvironmentVariable, Name
from optune_core.parts.section import Section


class Instructions(DrawnPrompts):
    """Rows of an instruction and of the output that a policy's is compared with, in the order of the calibration."""

    type: Literal["drawn"] = "drawn"
    column: str = "instruction"
    """Column of the instructions: text."""
    output: str = "output"
    """Column of the reference outputs: text."""
    generator: str = "generator"
    """Column that says who wrote them, for people; it may be missing."""
    max_tokens: int = Field(default=2048, ge=1)
    too_long: Literal["drop", "error"] = "error"


class Annotator(Section):
    """An annotator of the library alpaca-eval, behind an OpenAI-compatible endpoint."""

    config: str = "weighted_alpaca_eval_gpt4_turbo"
    """Name of one of the library's annotators, or a folder with a `configs.yaml` as theirs."""
    base_url: str = "https://api.openai.com/v1"
    """`http://127.0.0.1:8000/v1` for a local `vllm serve`; the model is named in the annotator's own file."""
    api_key_env: EnvironmentVariable | None = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key; null for an endpoint that asks for none."""
    attempts: int = Field(default=3, ge=1)
    """How often an annotation is asked for until it can be read; then it counts as malformed."""
    concurrency: int = Field(default=8, ge=1)
    """Requests at a time."""
    timeout_seconds: float = Field(default=120.0, gt=0.0)
    """For one request."""
    retries: int = Field(default=8, ge=0)
    """How often a request that met 429, a 5xx or a time-out is sent again, with growing pauses."""

    HOW: ClassVar[tuple[str, ...]] = ("concurrency", "timeout_seconds", "retries")


class AlpacaConfig(Section):
    """Everything that determines a length-controlled win rate but the policies of the run it is asked of."""

    name: Name
    """Names the evaluation in the run's records: one name, one configuration."""
    seed: int = Field(default=0, ge=0)
    """Decides the draw of the prompts and the sampling of responses."""
    prompts: Instructions
    """The instructions, with the outputs that a policy's are compared with."""
    calibration: str = "hf://datasets/tatsu-lab/alpaca_eval/df_gamed.csv"
    """CSV that the library's length control is fitted with, for the very instructions of `prompts.source`: their
    difficulties, and annotations of a concise and a verbose baseline. A path, or any URL that fsspec reads."""
    generation: Sampling | None = None
    """Default: as the run samples."""
    annotator: Annotator = Field(default_factory=Annotator)
    shard_size: int = Field(default=16, ge=1)
    """Prompts that are annotated and committed together: what at most is asked for again after a kill."""
