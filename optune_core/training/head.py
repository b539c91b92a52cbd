"""log-probabilities of response tokens from hidden states: the vocabulary's projection, some tokens at a time.

The logits of a pack would be its largest tensor by far (tokens × vocabulary). Here they exist for a chunk of tokens,
where the log-probabilities are taken from them forwards and their gradient is made in their place backwards. The first
chunks, up to a fixed size, are kept in between; those of the others are computed twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

_CHUNK = 1 << 26
"""Logits that exist at a time, in the type that is computed in."""
_KEPT = 1 << 28
"""Logits that are kept for the backward pass, in that type: half a GiB in bfloat16 saves 5 % of a step on a CPU."""
_BLOCK = 1 << 22
"""Logits that exist in float32 at a time on a CPU: few, so that its cache holds them."""


def token_logps(head: Any, hidden: Tensor, targets: Tensor) -> Tensor:
    """log-probability of each target.

    Args:
        head: the projection to V tokens, a linear layer; its weight is float32.
        hidden: (R, H).
        targets: int64, (R,).

    Returns:
        float32, (R,); computed in autocast's type where that is on, its softmax in float32.
    """
    device = hidden.device.type
    kind = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    kept = _KEPT if torch.is_grad_enabled() else 0
    logps: Tensor = _TokenLogps.apply(hidden, head.weight, head.bias, targets, kind, kept)  # type: ignore[no-untyped-call]
    return logps


class _TokenLogps(Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, kind: torch.dtype, kept: int
    ) -> Tensor:
        inputs, cast_weight = hidden.to(kind), weight.to(kind)
        norms = torch.empty(len(targets), device=hidden.device)
        picked = torch.empty_like(norms)
        ctx.kept = []
        for chunk in _slices(len(targets), _CHUNK // len(weight)):
            logits = _logits(inputs[chunk], cast_weight, bias)
            picked[chunk] = logits.gather(-1, targets[chunk, None])[:, 0].float()
            for block in _blocks(logits):
                norms[chunk][block] = logits[block].float().logsumexp(-1)
            if (kept := kept - logits.numel()) >= 0:
                ctx.kept.append(logits)
        ctx.save_for_backward(inputs, cast_weight, bias, targets, norms)
        ctx.kinds = hidden.dtype, weight.dtype
        return picked - norms

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Of log p(target) by the logits: one at the target, minus the probabilities."""
        inputs, weight, bias, targets, norms = ctx.saved_tensors
        of_inputs = torch.empty_like(inputs)
        of_weight = torch.zeros_like(weight, dtype=ctx.kinds[1]) if ctx.needs_input_grad[1] else None
        of_bias = torch.zeros_like(bias) if bias is not None and ctx.needs_input_grad[2] else None
        for chunk in _slices(len(targets), _CHUNK // len(weight)):
            logits = ctx.kept.pop(0) if ctx.kept else _logits(inputs[chunk], weight, bias)
            for block in _blocks(logits):
                rows = logits[block].float().sub_(norms[chunk][block, None]).exp_().neg_()
                one = torch.ones_like(rows[:, :1])
                rows.scatter_add_(-1, targets[chunk][block, None], one).mul_(gradient[chunk][block, None])
                logits[block] = rows
            of_inputs[chunk] = logits @ weight
            if of_weight is not None:
                of_weight += logits.T @ inputs[chunk]
            if of_bias is not None:
                of_bias += logits.sum(0, dtype=of_bias.dtype)
        return of_inputs.to(ctx.kinds[0]), of_weight, of_bias, None, None, None


def _logits(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    logits = inputs @ weight.T
    return logits if bias is None else logits + bias.to(logits.dtype)


def _blocks(logits: Tensor) -> Iterator[slice]:
    on_cpu = logits.device.type == "cpu"
    return _slices(len(logits), _BLOCK // logits.shape[1] if on_cpu else len(logits))


def _slices(length: int, size: int) -> Iterator[slice]:
    size = max(1, size)
    return (slice(first, first + size) for first in range(0, length, size))
