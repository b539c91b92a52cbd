"""Log-probabilities in chunks, and their gradient, against torch's own cross entropy."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from optune_core.training import head
from optune_core.training.head import token_logps


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(
    ("chunk", "block", "kept"), [(1 << 26, 1 << 22, 1 << 28), (30 * 4, 30 * 3, 30 * 9), (30 * 4, 30 * 3, 0), (1, 1, 1)]
)
def test_values_and_gradients_are_those_of_cross_entropy(
    monkeypatch: pytest.MonkeyPatch, bias: bool, frozen: bool, chunk: int, block: int, kept: int
) -> None:
    monkeypatch.setattr(head, "_CHUNK", chunk)
    monkeypatch.setattr(head, "_BLOCK", block)
    monkeypatch.setattr(head, "_KEPT", kept)
    torch.manual_seed(0)
    layer = torch.nn.Linear(8, 30, bias=bias).requires_grad_(not frozen)
    hidden, targets, weights = torch.randn(11, 8, requires_grad=True), torch.randint(0, 30, (11,)), torch.randn(11)
    results = []
    for logps in (
        lambda: token_logps(layer, hidden, targets),
        lambda: -F.cross_entropy(layer(hidden), targets, reduction="none"),
    ):
        layer.zero_grad()
        hidden.grad = None
        values = logps()
        (values * weights).sum().backward()
        gradients = [None if p.grad is None else p.grad.clone() for p in layer.parameters()]
        results.append([values.detach(), hidden.grad, *[g for g in gradients if g is not None]])
    assert len(results[0]) == (2 if frozen else 3 + bias)
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)


def test_under_autocast_the_softmax_is_in_float32() -> None:
    torch.manual_seed(0)
    layer, hidden, targets = torch.nn.Linear(64, 5000, bias=False), torch.randn(7, 64), torch.randint(0, 5000, (7,))
    with torch.autocast("cpu", torch.bfloat16):
        logps = token_logps(layer, hidden, targets)
        expected = -F.cross_entropy(layer(hidden).float(), targets, reduction="none")
    assert logps.dtype == torch.float32
    torch.testing.assert_close(logps, expected, rtol=1e-5, atol=1e-5)


def test_no_tokens_have_no_log_probabilities() -> None:
    hidden = torch.randn(0, 8, requires_grad=True)
    logps = token_logps(torch.nn.Linear(8, 30), hidden, torch.zeros(0, dtype=torch.int64))
    assert logps.shape == (0,)
    logps.sum().backward()
    torch.testing.assert_close(hidden.grad, torch.zeros(0, 8))
