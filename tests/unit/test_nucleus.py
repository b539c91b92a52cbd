"""The shortcut past sorting a vocabulary leaves what the whole sort leaves, to the bit."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optune_core.generation.transformers import cut_to_nucleus


def by_whole_sort(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    ordered, order = probabilities.sort(dim=-1, descending=True)
    ordered[ordered.cumsum(dim=-1) - ordered >= top_p] = 0.0
    return torch.zeros_like(probabilities).scatter(-1, order, ordered)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    sharpness=st.floats(0.0, 8.0),  # at 0 all tokens are equal
    top_p=st.sampled_from([0.01, 0.5, 0.9, 0.999, 1.0]),
    likely=st.sampled_from([1, 2, 16, 4096]),
)
def test_the_nucleus_is_that_of_the_whole_sort(seed: int, sharpness: float, top_p: float, likely: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = (sharpness * torch.randn(5, 300, generator=generator)).bfloat16().float()  # rounded: there are equals
    probabilities = logits.softmax(dim=-1)
    cut = cut_to_nucleus(probabilities.clone(), top_p, likely)
    assert torch.equal(cut, by_whole_sort(probabilities, top_p))


def test_as_few_tokens_as_have_the_mass() -> None:
    probabilities = torch.tensor([[0.1, 0.5, 0.15, 0.25]])
    assert cut_to_nucleus(probabilities, 0.74, likely=3).tolist() == torch.tensor([[0.0, 0.5, 0.0, 0.25]]).tolist()
    assert cut_to_nucleus(probabilities, 0.76, likely=3).tolist() == torch.tensor([[0.0, 0.5, 0.15, 0.25]]).tolist()
