"""Interface of generation engines. They exchange token ids; texts are for people and rewards."""

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
    """A prompt to which one response is sampled."""

    shard: int
    """Number of its shard. Requests of a shard are consecutive, and shards are in ascending order."""
    index: int
    """Position in its shard."""
    prompt_token_ids: list[int]
    seed: int
    """Seed of its random numbers, see `sampling_seed`."""


@dataclass(frozen=True)
class Response:
    """A response to a request."""

    shard: int
    """`Request.shard`."""
    index: int
    """`Request.index`."""
    token_ids: list[int]
    """Sampled tokens, the end-of-turn token included if the model gave one."""
    text: str
    """The tokens as text, without special tokens."""
    finish_reason: str
    """`stop` (the model ended its turn) or `length` (cut at max_tokens)."""
    logp: float | None
    """log π(y|x) in nats, summed over `token_ids`, before temperature and top_p; None unless `logps` asks for it."""


class Sampler(Protocol):
    """An engine that was started with a model."""

    def generate(self, requests: Iterable[Request]) -> Iterator[Response]:
        """Yield one response for every request, in any order; requests are taken from the iterable only when needed.

        A repeatable engine completes shard after shard, and gives equal responses to equal shards.
        """
        ...


class SamplingParameters(Section):
    """Distribution from which tokens are drawn, and their largest number."""

    temperature: float = Field(default=1.0, gt=0.0)
    """Temperature of sampling (paper: 1.0)."""
    top_p: float = Field(default=0.9, gt=0.0, le=1.0)
    """Probability mass of the nucleus that tokens are drawn from (paper: 0.9)."""
    max_tokens: int = Field(default=512, ge=1)
    """Largest number of tokens in a response (paper: 512)."""
    logps: bool = False
    """True: the engine also returns the log-probability of each response, before temperature and top_p; needed by
    `training.reference_logps: engine`. vLLM in bfloat16 and torch with bfloat16 autocast differed by 0.35 nats a
    response of 85 tokens on average, and by 1.2 nats at most (SmolLM2-135M, 32 responses,
    `tests/benchmarks/engine_logps.py`)."""


class Engine(Part):
    """Base of all engines: a section of the configuration that can start the engine."""

    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Type of the model's weights and activations."""
    replicas: int | None = Field(default=None, ge=1)
    """Number of engines that divide the shards between them, each in a process of its own on devices of its own.
    Default: as many as the devices of the machine suffice for, at least one. It changes no result, so it may be changed
    in a run."""

    HOW: ClassVar[tuple[str, ...]] = ("replicas",)

    @property
    def devices(self) -> int:
        """Number of devices that each engine needs."""
        return 1

    @property
    @abstractmethod
    def sequences(self) -> int:
        """Largest number of sequences that an engine samples at the same time."""

    def side_by_side(self, section: str) -> Replicas:
        """Return how many engines run in parallel; `section` names the place in the configuration for messages."""
        return Replicas(section, self.replicas, self.devices)

    @abstractmethod
    def start(self, parameters: SamplingParameters, model: Path, *, max_tokens: int) -> Sampler:
        """Start the engine with a model.

        Args:
            parameters: distribution to sample from.
            model: model folder with tokenizer.
            max_tokens: largest number of tokens in a prompt and its response together.
        """


def sampling_seed(seed: int, iteration: int, prompt_id: str, sample: int) -> int:
    """Return the seed of one response: a hash, so that it does not depend on which worker samples it, or when.

    Args:
        seed: the run's seed.
        iteration: t.
        prompt_id: content hash of the prompt.
        sample: number of the response to its prompt, 0 … K-1.

    Returns:
        A number below 2^48.
    """
    return int.from_bytes(hashlib.sha256(f"{seed}/{iteration}/{prompt_id}/{sample}".encode()).digest()[:6])
