"""The section `generation`: how responses are sampled."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from optune_core.generation.engine import Engine, SamplingParameters
from optune_core.generation.registry import ENGINES
from optune_core.generation.vllm import VllmEngine


class Sampling(SamplingParameters):
    """Sampling with an engine, in shards."""

    engine: Annotated[Engine, ENGINES] = Field(default_factory=VllmEngine)
    """What samples the responses."""
    shard_size: int = Field(default=256, ge=1)
    """Prompts a shard: the unit that is committed, and done again after a kill."""

    def identity(self) -> dict[str, Any]:
        """Return what determines a response; shards are part of a key by their rows."""
        return {name: value for name, value in super().identity().items() if name != "shard_size"}


class Generation(Sampling):
    """K responses a prompt of every iteration."""

    samples: int = Field(default=2, ge=2)
    """K, responses a prompt (paper: 2). With more, the pair is the best against the worst."""
    truncated: Literal["keep", "drop"] = "keep"
    """Whether a response cut at `max_tokens` may enter a pair."""
    ahead: bool = False
    """Beyond the paper: while π_{t+1} trains on a work pool, iteration t + 1 samples already, from π_t. Hides the
    shorter of the two behind the longer, if they have devices of their own. From iteration 1 on responses then come
    from a policy that is one iteration old (`sampled_from` in the replay set, `staleness/mean` in its metrics)."""

    @property
    def sampling(self) -> Sampling:
        """How each response is sampled."""
        return Sampling.model_construct(**{name: getattr(self, name) for name in Sampling.model_fields})
