"""Nucleus sampling keeps the smallest set of the mass, however many tokens it looks at first."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optune_core.generation.nucleus import keep_nucleus


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    sharpness=st.floats(0.0, 8.0),  # at 0 all tokens are equal
    top_p=st.sampled_from([0.01, 0.5, 0.9, 0.999, 1.0]),
    likely=st.sampled_from([1, 2, 16, 4096]),
)
def test_the_nucleus_is_the_smallest_set_of_the_mass(seed: int, sharpness: float, top_p: float, likely: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = (sharpness * torch.randn(5, 300, generator=generator)).bfloat16().float()  # rounded: there are equals
    for row, before in zip(keep_nucleus(logits.clone(), top_p, likely), logits, strict=True):
        inside = row.isfinite()
        assert torch.equal(row[inside], before[inside])
        assert (before[~inside] < (least := before[inside].min())).all()
        probabilities = before.double().softmax(dim=-1)
        assert probabilities[inside].sum() > top_p - 1e-6
        assert probabilities[before > least].sum() < top_p + 1e-6


def test_tokens_are_kept_until_their_mass_exceeds_top_p() -> None:
    logits = torch.tensor([[0.1, 0.5, 0.15, 0.25]]).log()
    cut = -torch.inf
    for likely in (1, 2, 3, 4):
        kept = keep_nucleus(logits.clone(), 0.74, likely)
        assert kept.tolist() == torch.tensor([[cut, logits[0, 1], cut, logits[0, 3]]]).tolist()
        kept = keep_nucleus(logits.clone(), 0.76, likely)
        assert kept.tolist() == torch.tensor([[cut, logits[0, 1], logits[0, 2], logits[0, 3]]]).tolist()
