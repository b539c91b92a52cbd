"""What the stages ask of a generation engine. Token ids go in and come out; text is for people."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from optune_core.config.schema import Generation, VllmEngine


@dataclass(frozen=True)
class Request:
    shard: int
    """The shard it belongs to. Requests of a shard stand together, shards in their order."""
    index: int
    """Position in its shard."""
    prompt_token_ids: list[int]
    seed: int


@dataclass(frozen=True)
class Response:
    shard: int
    index: int
    token_ids: list[int]
    """As sampled, with the end-of-turn token where the model gave one."""
    text: str
    finish_reason: str
    """`stop` (the model ended its turn) or `length` (cut at max_tokens)."""
    logp: float | None
    """log π(y|x), summed over `token_ids`, before temperature and top_p; None unless asked for."""


class Engine(Protocol):
    def generate(self, requests: Iterable[Request]) -> Iterator[Response]:
        """Answer all requests, in any order, taking no more of them than it has use for.

        A repeatable engine answers shard by shard, and equal shards get equal answers.
        """
        ...


def sampling_seed(seed: int, iteration: int, prompt_id: str, sample: int) -> int:
    """The seed of one response: a hash, so that it does not matter which worker samples it, or when.

    Args:
        seed: the run's seed.
        iteration: t.
        prompt_id: content hash of the prompt.
        sample: 0 … K-1.

    Returns:
        A number below 2^48.
    """
    return int.from_bytes(hashlib.sha256(f"{seed}/{iteration}/{prompt_id}/{sample}".encode()).digest()[:6])


def open_engine(config: Generation, model: Path, *, max_tokens: int) -> Engine:
    """Start the configured engine.

    Args:
        config: engine and sampling parameters.
        model: model folder with tokenizer.
        max_tokens: longest prompt and response together.
    """
    if isinstance(config.engine, VllmEngine):
        from optune_core.generation.vllm import VllmGeneration

        return VllmGeneration(config, config.engine, model, max_tokens)
    from optune_core.generation.transformers import TransformersGeneration

    return TransformersGeneration(config, config.engine, model)
