"""The section `generation`: sampling of responses."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from optune_core.generation.engine import Engine, SamplingParameters
from optune_core.generation.registry import ENGINES
from optune_core.generation.vllm import VllmEngine


class Sampling(SamplingParameters):
    """Settings that determine how each response is sampled, and by which engine."""

    engine: Annotated[Engine, ENGINES] = Field(default_factory=VllmEngine)
    """Program that samples the responses."""
    shard_size: int = Field(default=256, ge=1)
    """Prompts a shard. A shard is committed at once; one that was interrupted is sampled again."""

    def identity(self) -> dict[str, Any]:
        """Return the fields that determine a response, as JSON. Keys hold the rows of a shard instead of
        `shard_size`."""
        return {name: value for name, value in super().identity().items() if name != "shard_size"}


class Generation(Sampling):
    """The section `generation`: how an iteration samples K responses a prompt."""

    samples: int = Field(default=2, ge=2)
    """K, the number of responses a prompt (paper: 2). A pair is the best of them against the worst."""
    truncated: Literal["keep", "drop"] = "keep"
    """Treatment of responses that were cut at `max_tokens`: `keep` lets them enter pairs, `drop` does not."""
    ahead: bool = False
    """Beyond the paper: iteration t + 1 samples its responses from π_t, while π_{t+1} trains on a work pool. If both
    have devices of their own, an iteration takes the longer of the two times instead of their sum. From iteration 1 on,
    responses then come from a policy that is one iteration old (`sampled_from` in the replay set, `staleness/mean` in
    its metrics)."""

    @property
    def sampling(self) -> Sampling:
        """The part of the section that determines how each response is sampled."""
        return Sampling.model_construct(**{name: getattr(self, name) for name in Sampling.model_fields})
