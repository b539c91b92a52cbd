"""Attention over a `PackedRow`: pairs do not see each other, and both responses of a pair see the same prompt.

Every pair consists of two causal sequences: prompt and chosen response attend to themselves, and the rejected response
attends to the prompt and itself. There is no other masking, so two kernels suffice: `varlen` gives flash attention all
sequences of a row in one call (CUDA, half precision); `sdpa` computes them one by one (any device and precision).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

from optune_core.training.layout import PackedRow

_BLOCK = 256
"""Number of queries that `_in_products` handles at a time."""


def sdpa(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    scaling: float,
    packed: PackedRow,
    sliding_window: int | None = None,
    **ignored: Any,
) -> tuple[Tensor, None]:
    """Compute attention one sequence after the other. Called by transformers as its attention function.

    Args:
        module: attention layer; not used.
        query: (1, heads, T, head size).
        key, value: (1, key heads, T, head size).
        attention_mask: not used; `packed` determines the mask.
        scaling: factor of the scores.
        packed: layout of the T tokens.
        sliding_window: number of tokens that a token sees, itself included; None: all earlier ones.

    Returns:
        (1, T, heads, head size), in the dtype of `value`; None in place of attention weights.
    """

    # Under autocast, position embeddings make queries and keys float32 in some architectures, but never values.
    query, key = query.to(value.dtype), key.to(value.dtype)
    attend = _in_products if query.device.type == "cpu" and query.dtype == torch.bfloat16 else _fused
    # Split, not sliced: in the backward pass every slice would allocate a row of zeros.
    queries = torch.split(query, [n for s in packed.spans for n in (s.prompt + s.chosen, s.rejected)], dim=2)
    segments = [n for s in packed.spans for n in (s.prompt, s.chosen, s.rejected)]
    keys, values = torch.split(key, segments, dim=2), torch.split(value, segments, dim=2)
    outputs = []
    for number, span in enumerate(packed.spans):
        for side, length in enumerate((span.prompt + span.chosen, span.rejected)):
            if length:
                seen, of_seen = (torch.cat([of[3 * number], of[3 * number + 1 + side]], dim=2) for of in (keys, values))
                outputs.append(attend(queries[2 * number + side], seen, of_seen, sliding_window, scaling))
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def _fused(queries: Tensor, keys: Tensor, values: Tensor, window: int | None, scaling: float) -> Tensor:
    """Compute attention with torch's scaled_dot_product_attention."""
    length = keys.shape[2]
    causal = queries.shape[2] == length and (window is None or length <= window)
    return F.scaled_dot_product_attention(
        queries,
        keys,
        values,
        attn_mask=None if causal else _mask(queries.shape[2], length, window, queries.device),
        is_causal=causal,
        scale=scaling,
        enable_gqa=queries.shape[1] != keys.shape[1],
    )


def _in_products(queries: Tensor, keys: Tensor, values: Tensor, window: int | None, scaling: float) -> Tensor:
    """Compute attention with two matrix products and a softmax, for _BLOCK queries and all heads of a key head at a
    time. In bfloat16 on a CPU two to three times as fast as `_fused`, whose backward pass is slow."""
    _, heads, _, size = queries.shape
    outputs = []
    end = keys.shape[2] - queries.shape[2]
    for block in torch.split(queries * scaling, _BLOCK, dim=2):
        length = block.shape[2]
        end += length
        seen, of_seen = keys[0, :, :end], values[0, :, :end]
        scores = (block.reshape(len(seen), -1, size) @ seen.transpose(1, 2)).view(heads, length, end)
        hidden = torch.zeros((), dtype=scores.dtype).masked_fill(~_mask(length, end, window, scores.device), -torch.inf)
        probabilities = (scores + hidden).softmax(-1)
        outputs.append((probabilities.view(len(seen), -1, end) @ of_seen).view(block.shape))
    return torch.cat(outputs, dim=2)


def _mask(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor:
    """Make the mask of a causal sequence: bool, (queries, keys), true where a query sees a key. The last query is at
    the position of the last key."""
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
    packed: PackedRow,
    sliding_window: int | None = None,
    **ignored: Any,
) -> tuple[Tensor, None]:
    """Compute all sequences in one call of flash attention, whose causal mask is aligned to the last key of each.

    Arguments and result are those of `sdpa`.
    """
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
"""Attention kernels in order of preference, by name."""

for _name, _kernel in KERNELS.items():
    AttentionInterface.register(f"optune_{_name}", _kernel)
