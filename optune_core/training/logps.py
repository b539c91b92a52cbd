"""log π(y|x): one function for the policy and for the reference, so that both take the same numerical path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from optune_core.training.batches import PairCollator, in_parts


def response_logps(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """log π(y|x) of every sequence of a batch, summed over its response tokens.

    The vocabulary is only expanded at the columns that predict a response token.

    Args:
        model: a causal language model that takes `logits_to_keep`.
        batch: input_ids, attention_mask of shape (S, P + L), response_mask of shape (S, L).

    Returns:
        float32, shape (S,).
    """
    mask = batch["response_mask"]
    length = mask.shape[1]
    positions = (batch["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
    logits = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        position_ids=positions,
        logits_to_keep=length + 1,
        use_cache=False,
    ).logits[:, :-1]
    targets = batch["input_ids"][:, -length:]
    # Row by row: float32 logits of one sequence at a time, which is also the faster way on a CPU.
    token_logps = torch.stack(
        [-F.cross_entropy(row.float(), target, reduction="none") for row, target in zip(logits, targets, strict=True)]
    )
    return (token_logps * mask).sum(dim=1)


@torch.no_grad()
def reference_logps(
    model: Any,
    rows: list[dict[str, object]],
    micro_batches: list[list[int]],
    collator: PairCollator,
    precision: torch.dtype,
    pairs_at_once: int,
    done: Callable[[int], None],
) -> dict[int, tuple[float, float]]:
    """(chosen, rejected) log π_ref(y|x) by row number, computed in the given micro-batches, in their order.

    Args:
        model: the reference, float32 weights, on its device.
        rows: as `PairCollator` takes them.
        micro_batches: row numbers.
        precision: autocast type of the forward pass; float32 for none.
        pairs_at_once: pairs of a micro-batch that share a forward pass.
        done: told how many rows are computed.
    """
    device = next(model.parameters()).device
    logps: dict[int, tuple[float, float]] = {}
    for group in micro_batches:
        batch = {name: value.to(device) for name, value in collator([rows[row] for row in group]).items()}
        pairs: list[tuple[float, float]] = []
        for part in in_parts(batch, pairs_at_once):
            with torch.autocast(device.type, precision, enabled=precision != torch.float32):
                chosen, rejected = response_logps(model, part).chunk(2)
            pairs += zip(chosen.tolist(), rejected.tolist(), strict=True)
        logps |= zip(group, pairs, strict=True)
        done(len(logps))
    return logps
