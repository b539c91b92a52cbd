"""Nucleus sampling (Holtzman et al., 2020) without sorting whole vocabularies."""

from __future__ import annotations

import torch


def keep_nucleus(logits: torch.Tensor, top_p: float, likely: int = 512) -> torch.Tensor:
    """Keep the most probable tokens, as few as have the mass top_p, and what equals the least of them.

    Sorting a whole vocabulary takes a CPU longer than a small model's forward pass. A nucleus lies nearly always
    within the `likely` most probable tokens, so only the rows where it does not are sorted.

    Args:
        logits: float32, (batch, vocabulary), divided by the temperature. Overwritten.
        top_p: in (0, 1].
        likely: tokens to look at first. Changes no result but by rounding.

    Returns:
        `logits`, with -inf for all other tokens.
    """
    if top_p == 1.0:
        return logits
    return logits.masked_fill_(logits < _least(logits, top_p, likely), -torch.inf)


def _least(logits: torch.Tensor, top_p: float, likely: int) -> torch.Tensor:
    """The nucleus's smallest logit, (batch, 1)."""
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
