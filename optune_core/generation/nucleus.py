"""Nucleus sampling (Holtzman et al. 2020) without sorting complete vocabularies."""

from __future__ import annotations

import torch


def keep_nucleus(logits: torch.Tensor, top_p: float, likely: int = 512) -> torch.Tensor:
    """Keep the smallest set of most probable tokens whose mass reaches top_p, and tokens that equal the least of them.

    On a CPU, sorting a complete vocabulary takes longer than the forward pass of a small model. The nucleus nearly
    always lies within the `likely` most probable tokens, so only the other rows are sorted.

    Args:
        logits: float32, (batch, vocabulary), divided by the temperature; overwritten.
        top_p: probability mass of the nucleus, in (0, 1].
        likely: number of tokens that are tried first; it changes the result only by rounding.

    Returns:
        `logits`, float32, (batch, vocabulary), with -inf for all tokens outside the nucleus.
    """
    if top_p == 1.0:
        return logits
    return logits.masked_fill_(logits < _least(logits, top_p, likely), -torch.inf)


def _least(logits: torch.Tensor, top_p: float, likely: int) -> torch.Tensor:
    """Return the smallest logit in the nucleus, float32, (batch, 1)."""
    vocabulary = logits.shape[-1]
    ordered = logits.topk(min(likely, vocabulary), dim=-1).values
    mass = (ordered - logits.logsumexp(dim=-1, keepdim=True)).exp().cumsum(dim=-1)
    inside = (mass < top_p).sum(dim=-1, keepdim=True)  # the token that reaches the mass belongs to the nucleus
    least = ordered.gather(-1, inside.clamp(max=ordered.shape[-1] - 1))
    if likely < vocabulary:
        beyond = (inside[:, 0] == ordered.shape[-1]).nonzero()[:, 0]
        if len(beyond):
            least[beyond] = _least(logits[beyond], top_p, vocabulary)
    return least
