"""Attention over a `Row` of pairs: each pair for itself, and both of its responses on one prompt.

Every pair falls into two causal sequences: prompt and chosen attend to themselves, and the rejected response attends
to the prompt and itself. That is all the masking there is, so two kernels do: `varlen` gives flash attention all
sequences of a row in one call (CUDA, half precision); `sdpa` computes pair by pair (any device, any precision).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

from optune_core.training.layout import Row, Span

_SHORT = 1024
"""Tokens of a pair up to which a CPU in bfloat16 is faster by matrix products over all of the pair, masked, than by
fused attention over its two sequences, which takes up to twice as long backwards and copies the prompt's keys."""


def sdpa(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    scaling: float,
    packed: Row,
    sliding_window: int | None = None,
    **ignored: Any,
) -> tuple[Tensor, None]:
    """One pair after the other.

    Args:
        query: (1, heads, T, head size); key, value: (1, key heads, T, head size).
        packed: what lies where in the T tokens.
        sliding_window: tokens that a token sees, itself included.

    Returns:
        (1, T, heads, head size).
    """

    # Under autocast, position embeddings have made queries and keys float32 in some architectures; never values.
    query, key = query.to(value.dtype), key.to(value.dtype)
    products = query.device.type == "cpu" and query.dtype == torch.bfloat16
    lengths = [span.end - span.start for span in packed.spans]
    # Split, not sliced: backwards, every slice would fill a row of its own with zeros.
    pairs = zip(packed.spans, *(torch.split(of, lengths, dim=2) for of in (query, key, value)), strict=True)
    outputs = []
    for span, queries, keys, values in pairs:
        attend = _together if products and queries.shape[2] <= _SHORT else _apart
        outputs.append(attend(span, queries, keys, values, sliding_window, scaling))
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def _together(span: Span, queries: Tensor, keys: Tensor, values: Tensor, window: int | None, scaling: float) -> Tensor:
    """Both sequences of a pair in matrix products, probabilities in between; all heads of a key head in one."""
    _, heads, length, size = queries.shape
    grouped = (queries * scaling).reshape(keys.shape[1], -1, size)
    scores = (grouped @ keys[0].transpose(1, 2)).view(heads, length, length)
    probabilities = (scores + _pair_mask(span, window, scores)).softmax(-1)
    return (probabilities.view(keys.shape[1], -1, length) @ values[0]).view(queries.shape)


def _pair_mask(span: Span, window: int | None, like: Tensor) -> Tensor:
    """What is added to the scores of a pair's tokens, (length, length): 0 where one sees the other, else -∞."""
    lengths = torch.tensor([span.prompt, span.chosen, span.rejected], device=like.device)
    part = torch.repeat_interleave(torch.arange(3, device=like.device), lengths)
    position = torch.arange(len(part), device=like.device) - span.chosen * (part == 2)
    ahead = position - position[:, None]
    seen = (ahead <= 0) & ((part == 0) | (part == part[:, None]))
    if window is not None:
        seen = seen & (ahead > -window)
    return torch.zeros(seen.shape, dtype=like.dtype, device=like.device).masked_fill(~seen, float("-inf"))


def _apart(span: Span, queries: Tensor, keys: Tensor, values: Tensor, window: int | None, scaling: float) -> Tensor:
    """A pair's two sequences, one after the other."""
    sides = torch.split(queries, [span.prompt + span.chosen, span.rejected], dim=2)
    prompts, *responses = zip(
        *(torch.split(of, [span.prompt, span.chosen, span.rejected], dim=2) for of in (keys, values)), strict=True
    )
    outputs = []
    for side, response in zip(sides, responses, strict=True):
        if not side.shape[2]:
            continue
        seen, of_seen = (torch.cat(parts, dim=2) for parts in zip(prompts, response, strict=True))
        length = seen.shape[2]
        causal = side.shape[2] == length and (window is None or length <= window)
        outputs.append(
            F.scaled_dot_product_attention(
                side,
                seen,
                of_seen,
                attn_mask=None if causal else _mask(side.shape[2], length, window, queries.device),
                is_causal=causal,
                scale=scaling,
                enable_gqa=queries.shape[1] != keys.shape[1],
            )
        )
    return torch.cat(outputs, dim=2)


def _mask(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor:
    """Who sees whom, bool (queries, keys), where the last query stands at the last key."""
    ahead = torch.arange(keys, device=device) - torch.arange(keys - queries, keys, device=device)[:, None]
    seen = ahead <= 0
    return seen if window is None else seen & (ahead > -window)


def varlen(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    scaling: float,
    packed: Row,
    sliding_window: int | None = None,
    **ignored: Any,
) -> tuple[Tensor, None]:
    """All sequences in one call of flash attention, whose causal mask ends at the last key of each. As `sdpa`."""
    from torch.nn.attention.varlen import varlen_attn

    sequences = packed.sequences
    output = varlen_attn(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1)[sequences.keys],
        value[0].transpose(0, 1)[sequences.keys],
        sequences.query_offsets,
        sequences.key_offsets,
        sequences.longest_query,
        sequences.longest_key,
        scale=scaling,
        window_size=(-1 if sliding_window is None else sliding_window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(output, Tensor)
    return output[None], None


KERNELS: dict[str, Callable[..., tuple[Tensor, None]]] = {"varlen": varlen, "sdpa": sdpa}

for _name, _kernel in KERNELS.items():
    AttentionInterface.register(f"optune_{_name}", _kernel)
