"""Log-probabilities and gradients of packed sequences against those of one sequence at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optune_core.training.logps import KERNELS, PLAIN, choose_kernel, compute_inside, row_logps
from tests.integration.training.sequences import load, pairs_of, plain_logps

tokens = st.integers(3, 300)


def any_response(triples: list[Any]) -> bool:
    """Return whether there is anything to differentiate."""
    return any(chosen or rejected for _, chosen, rejected in triples)


prompts, responses = st.lists(tokens, min_size=1, max_size=20), st.lists(tokens, max_size=14)


@settings(max_examples=60)
@given(triples=st.lists(st.tuples(prompts, responses, responses), min_size=1, max_size=5))
def test_packed_logps_equal_those_of_one_sequence_at_a_time(model: Any, packed_model: Any, triples: list[Any]) -> None:
    with torch.no_grad():
        chosen, rejected = row_logps(packed_model, pairs_of(triples).row(range(len(triples))))
        torch.testing.assert_close(
            chosen.double(), torch.stack([plain_logps(model, p, c) for p, c, _ in triples]), rtol=1e-4, atol=1e-4
        )
        torch.testing.assert_close(
            rejected.double(), torch.stack([plain_logps(model, p, r) for p, _, r in triples]), rtol=1e-4, atol=1e-4
        )


@settings(max_examples=10)
@given(triples=st.lists(st.tuples(prompts, responses, responses), min_size=1, max_size=4).filter(any_response))
def test_gradients_of_the_wdpo_loss_equal_those_of_one_sequence_at_a_time(
    model: Any, packed_model: Any, triples: list[Any]
) -> None:
    from optune_core.losses.equations import wdpo_losses

    count = len(triples)
    rest = [torch.linspace(-9, 3, count), torch.linspace(1, -7, count), torch.ones(count), torch.arange(count) - 1.0]
    plain = [torch.stack([plain_logps(model, t[0], t[side]) for t in triples]).float() for side in (1, 2)]
    gradients = []
    for of, policy in ((packed_model, row_logps(packed_model, pairs_of(triples).row(range(count)))), (model, plain)):
        losses, _ = wdpo_losses(*policy, *rest, beta1=0.5, beta2=1.0)
        of.zero_grad()
        losses.sum().backward()
        gradients.append({name: p.grad.clone() for name, p in of.named_parameters()})
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


def test_chunks_of_logits_change_no_log_probability_or_gradient(
    packed_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from optune_core.training import head

    row = pairs_of([([5, 6, 7], [8, 9, 10, 11], [12, 13]), ([14], [15] * 7, [])]).row([0, 1])
    results = []
    for chunk, block in ((1 << 26, 1 << 22), (320 * 4, 320 * 3), (1, 1)):  # 320 tokens in the vocabulary
        monkeypatch.setattr(head, "_CHUNK", chunk)
        monkeypatch.setattr(head, "_BLOCK", block)
        packed_model.zero_grad()
        chosen, rejected = row_logps(packed_model, row)
        (chosen - 2 * rejected).sum().backward()
        results.append([chosen, rejected, *[p.grad.clone() for p in packed_model.parameters()]])
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("window", [None, 1, 4, 30])
@pytest.mark.parametrize(("queries", "keys"), [(12, 12), (3, 9), (4, 5), (8, 8), (1, 1)])
def test_attention_in_products_equals_fused_attention(
    monkeypatch: pytest.MonkeyPatch, queries: int, keys: int, window: int | None
) -> None:
    from optune_core.training import attention

    monkeypatch.setattr(attention, "_BLOCK", 4)
    generator = torch.Generator().manual_seed(0)
    shapes = (1, 4, queries, 8), (1, 2, keys, 8), (1, 2, keys, 8)
    inputs = [torch.randn(*shape, generator=generator, requires_grad=True) for shape in shapes]
    results = []
    for attend in (attention._in_products, attention._fused):
        output = attend(*inputs, window, 0.3)
        results.append([output, *torch.autograd.grad(output.square().sum(), inputs)])
    for products, fused in zip(*results, strict=True):
        torch.testing.assert_close(products, fused)


@pytest.mark.parametrize("cast_weights", [True, False])
@pytest.mark.parametrize("block", [5, 256])
def test_half_precision_equals_single_precision_up_to_rounding(
    tiny: Path, packed_model: Any, monkeypatch: pytest.MonkeyPatch, cast_weights: bool, block: int
) -> None:
    """Attention may run in blocks and weights may be cast once or by every operation; gradients are float32."""
    from optune_core.training import attention

    monkeypatch.setattr(attention, "_BLOCK", block)
    half = load(tiny)
    compute_inside(half, "sdpa", cast_weights=cast_weights)
    row = pairs_of([(list(range(9)), [8, 9, 10], [12] * 5), (list(range(20, 33)), [15] * 7, [])]).row([0, 1])
    results = []
    for model, on in ((packed_model, False), (half, True)):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=on):
            chosen, rejected = row_logps(model, row)
        (chosen - 2 * rejected).sum().backward()
        results.append((torch.cat([chosen, rejected]).detach(), [p.grad for p in model.parameters()]))
    (expected, exact), (found, rounded) = results
    assert found.dtype == torch.float32 and not torch.equal(found, expected)
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=1e-2)
    for mine, theirs in zip(rounded, exact, strict=True):
        assert mine.dtype == torch.float32
        assert torch.nn.functional.cosine_similarity(mine.flatten(), theirs.flatten(), dim=0) > 0.99


def test_a_row_without_rejected_responses_has_one_sequence_a_pair(packed_model: Any) -> None:
    """A kernel gets no empty sequences where the rejected responses are empty."""
    triples = [([5, 6, 7], [8, 9], [10]), ([14], [15] * 7, [3, 4])]
    row = pairs_of(triples, rejected=False).row([0, 1])
    assert row.input_ids.tolist() == [[5, 6, 7, 8, 9, 14, *[15] * 7]]
    sequences = row.sequences
    assert sequences.query_offsets.tolist() == sequences.key_offsets.tolist() == [0, 5, 13]
    assert sequences.keys.tolist() == list(range(13))
    chosen, rejected = row_logps(packed_model, row)
    expected, _ = row_logps(packed_model, pairs_of(triples).row([0, 1]))
    torch.testing.assert_close(chosen, expected, rtol=1e-4, atol=1e-4)
    assert rejected.tolist() == [0.0, 0.0]


def test_packed_attention_keeps_a_sliding_window(tiny: Path) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    shape: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 4}
    shape |= {"vocab_size": 320, "num_key_value_heads": 2, "sliding_window": 6, "initializer_range": 0.2}
    own, ours = (MistralForCausalLM(MistralConfig(**shape)).eval() for _ in range(2))
    ours.load_state_dict(own.state_dict())
    triples = [(list(range(3, 20)), list(range(30, 42)), list(range(50, 59))), ([7, 8], [9], [10, 11, 12])]
    compute_inside(ours, "sdpa")
    with torch.no_grad():
        chosen, rejected = row_logps(ours, pairs_of(triples).row([0, 1]))
        expected = [torch.stack([plain_logps(own, t[0], t[side]) for t in triples]).float() for side in (1, 2)]
    torch.testing.assert_close([chosen, rejected], expected, rtol=1e-4, atol=1e-4)


def test_a_model_that_cannot_be_packed_is_computed_without_packing(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(tiny)
    assert choose_kernel(model, torch.float32) == "sdpa"
    assert choose_kernel(model, torch.bfloat16) == "sdpa"
    assert model.config._attn_implementation == "sdpa"  # transformers' own again

    row = pairs_of([([5, 6, 7], [8, 9, 10, 11], [12, 13]), ([14], [15] * 7, [3])]).row([0, 1])
    with torch.no_grad():
        expected = [
            torch.stack([plain_logps(model, [5, 6, 7], [8, 9, 10, 11]), plain_logps(model, [14], [15] * 7)]).float(),
            torch.stack([plain_logps(model, [5, 6, 7], [12, 13]), plain_logps(model, [14], [3])]).float(),
        ]
        head = model.forward

        def scaled(**kwargs: Any) -> Any:
            output = head(**kwargs)
            output.logits = output.logits * 0.5
            return output

        model.forward = scaled  # its logits, of which the packed way knows nothing
        assert choose_kernel(model, torch.float32) == PLAIN
        model.forward = head
        compute_inside(model, PLAIN)
        torch.testing.assert_close(list(row_logps(model, row)), expected, rtol=1e-4, atol=1e-4)


def test_a_kernel_that_leaks_between_the_responses_is_not_chosen(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel lets the rejected response attend to the chosen one."""
    import torch.nn.functional as F

    def leaks(module: Any, query: Any, key: Any, value: Any, mask: Any, *, scaling: float, **kwargs: Any) -> Any:
        out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)
        return out.transpose(1, 2), None

    from transformers import AttentionInterface

    AttentionInterface.register("optune_sdpa", leaks)
    try:
        assert choose_kernel(load(tiny), torch.float32) == PLAIN
    finally:
        AttentionInterface.register("optune_sdpa", KERNELS["sdpa"])
