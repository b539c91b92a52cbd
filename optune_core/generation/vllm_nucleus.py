"""top_p for vLLM on CPUs. vLLM's own sorts the complete vocabulary for every token, which takes longer than the
model."""

from __future__ import annotations

import torch
from vllm.config import VllmConfig
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor

from optune_core.generation.nucleus import keep_nucleus


class Nucleus(LogitsProcessor):  # type: ignore[misc]  # vLLM has no types that mypy follows
    """Logits processor that keeps the nucleus of every request; `additional_config` holds the `top_p` of all requests.

    vLLM calls it after dividing by the temperature and before sampling.
    """

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        assert isinstance(vllm_config.additional_config, dict)
        self._top_p: float = vllm_config.additional_config["top_p"]

    def is_argmax_invariant(self) -> bool:
        return True

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Do nothing, since there is no state of requests."""

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        return keep_nucleus(logits, self._top_p)
