"""The engine `transformers`, for machines where vLLM is not available."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from optune_core.generation.engine import Engine, Sampler, SamplingParameters


class TransformersEngine(Engine):
    """Batched sampling by a model of transformers: slow, for machines where vLLM is not available."""

    type: Literal["transformers"] = "transformers"
    batch_size: int = Field(default=16, ge=1)
    """Responses that are sampled together."""

    @property
    def sequences(self) -> int:
        return self.batch_size

    def start(self, parameters: SamplingParameters, model: Path, *, max_tokens: int) -> Sampler:
        from optune_core.generation.transformers_sampler import TransformersSampler

        return TransformersSampler(parameters, model, batch_size=self.batch_size, dtype=self.dtype)
