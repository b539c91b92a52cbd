"""What the stages ask of a generation engine. Token ids go in and come out; text is for people."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Protocol

from pydantic import Field

from optune_core.parts.registry import Part
from optune_core.parts.section import Section
from optune_core.process.devices import Replicas


@dataclass(frozen=True)
class Request:
    """A prompt that is to be answered once."""

    shard: int
    """Number of its shard. Requests of a shard are consecutive, shards are in order."""
    index: int
    """Position in its shard."""
    prompt_token_ids: list[int]
    seed: int


@dataclass(frozen=True)
class Response:
    """The answer to a request."""

    shard: int
    index: int
    token_ids: list[int]
    """As sampled, with the end-of-turn token where the model gave one."""
    text: str
    finish_reason: str
    """`stop` (the model ended its turn) or `length` (cut at max_tokens)."""
    logp: float | None
    """log π(y|x), summed over `token_ids`, before temperature and top_p; None unless asked for."""


class Sampler(Protocol):
    """An engine that was started with a model."""

    def generate(self, requests: Iterable[Request]) -> Iterator[Response]:
        """Answer all requests, in any order, taking no more of them than it has use for.

        A repeatable engine answers shard by shard, and equal shards get equal answers.
        """
        ...


class SamplingParameters(Section):
    """How a token is drawn, and how many."""

    temperature: float = Field(default=1.0, gt=0.0)
    """Paper: 1.0."""
    top_p: float = Field(default=0.9, gt=0.0, le=1.0)
    """Paper: 0.9."""
    max_tokens: int = Field(default=512, ge=1)
    """Longest response in tokens (paper: 512)."""
    logps: bool = False
    """Also ask the engine for the log-probability of what it samples, before temperature and top_p; needed by
    `training.reference_logps: engine`. A bfloat16 vLLM and bfloat16 autocast in torch differed by 0.35 nats a response
    of 85 tokens in the mean, 1.2 at most (SmolLM2-135M, 32 responses, `tests/benchmarks/engine_logps.py`)."""


class Engine(Part):
    """Base of all engines: their configuration, and how they are started."""

    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Type of the weights in the engine."""
    replicas: int | None = Field(default=None, ge=1)
    """Engines that share the shards between them, each in a process of its own on devices of its own. Default: as many
    as the machine's devices suffice for, at least one. Changes no result, so it may be changed in a run."""

    HOW: ClassVar[tuple[str, ...]] = ("replicas",)

    @property
    def devices(self) -> int:
        """Devices that each engine needs."""
        return 1

    @property
    @abstractmethod
    def sequences(self) -> int:
        """Sequences that an engine answers at once."""

    def side_by_side(self, section: str) -> Replicas:
        """Return how many engines run side by side; `section` of the configuration is for messages."""
        return Replicas(section, self.replicas, self.devices)

    @abstractmethod
    def start(self, parameters: SamplingParameters, model: Path, *, max_tokens: int) -> Sampler:
        """Start the engine.

        Args:
            parameters: how to sample.
            model: model folder with tokenizer.
            max_tokens: longest prompt and response together.
        """


def sampling_seed(seed: int, iteration: int, prompt_id: str, sample: int) -> int:
    """Return the seed of one response: a hash, so that it does not matter which worker samples it, or when.

    Args:
        seed: the run's seed.
        iteration: t.
        prompt_id: content hash of the prompt.
        sample: 0 … K-1.

    Returns:
        A number below 2^48.
    """
    return int.from_bytes(hashlib.sha256(f"{seed}/{iteration}/{prompt_id}/{sample}".encode()).digest()[:6])
