"""Log-probabilities one sequence at a time, and pairs of given token ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from optune_core.training.layout import TokenPairs


def load(tiny: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny / "policy", dtype=torch.float32).eval()


def plain_logps(model: Any, prompt: list[int], response: list[int]) -> torch.Tensor:
    """Return log π(response | prompt) of one sequence without padding, from all its logits."""
    logits = model(input_ids=torch.tensor([prompt + response])).logits[0].double()
    logps = logits.log_softmax(-1)
    return sum((logps[len(prompt) + i - 1, token] for i, token in enumerate(response)), logps.new_zeros(()))


def pairs_of(triples: list[Any], rejected: bool = True) -> TokenPairs:
    """Return pairs of (prompt, chosen, rejected) token ids; without `rejected` there are no rejected responses."""
    columns = zip(*triples, strict=True)
    names = ("prompt_token_ids", "chosen_token_ids", "rejected_token_ids")
    return TokenPairs(
        pa.table({name: pa.array(ids, pa.list_(pa.int32())) for name, ids in zip(names, columns, strict=True)}),
        rejected=rejected,
    )
