"""Losses against numbers by hand, and against the reference implementation of TRL."""

import math

import pytest
import torch

from optune_core.losses.equations import (
    best_of_n_loss,
    best_of_n_losses,
    dpo_losses,
    effective_sample_size,
    hypo_loss,
    reverse_kl_losses,
    reward_weights,
    wdpo_loss,
    wdpo_losses,
)

POLICY_CHOSEN = torch.tensor([-10.0, -20.0])
POLICY_REJECTED = torch.tensor([-12.0, -18.0])
REFERENCE_CHOSEN = torch.tensor([-11.0, -20.0])
REFERENCE_REJECTED = torch.tensor([-11.0, -21.0])
CHOSEN_REWARDS = torch.tensor([2.0, 1.0])
REJECTED_REWARDS = torch.tensor([0.0, 1.0])


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_wdpo_equals_hand_computed_values() -> None:
    # Pair 1: log-ratios +1 and -1, I = σ(0.5·2); reward gap 2, R = σ(0.25·2).
    # Pair 2: log-ratios 0 and +3, I = σ(0.5·-3); reward gap 0, R = ½.
    first = -sigmoid(0.5) * math.log(sigmoid(1.0))
    second = -0.5 * math.log(sigmoid(-1.5))
    logps = (POLICY_CHOSEN, POLICY_REJECTED, REFERENCE_CHOSEN, REFERENCE_REJECTED)
    losses, metrics = wdpo_losses(*logps, CHOSEN_REWARDS, REJECTED_REWARDS, 0.5, 0.25)
    assert first == pytest.approx(0.62246 * 0.31326, rel=1e-4)
    assert losses.tolist() == pytest.approx([first, second], rel=1e-6)
    loss = wdpo_loss(*logps, CHOSEN_REWARDS, REJECTED_REWARDS, 0.5, 0.25)
    assert loss.item() == pytest.approx((first + second) / 2, rel=1e-6)
    assert metrics["rewards/chosen"].mean().item() == pytest.approx(0.5 * (1 + 0) / 2)
    assert metrics["rewards/rejected"].mean().item() == pytest.approx(0.5 * (-1 + 3) / 2)
    assert metrics["rewards/margins"].mean().item() == pytest.approx(0.5 * (2 - 3) / 2)
    assert metrics["rewards/accuracies"].mean().item() == 0.5
    assert metrics["rm/margins"].mean().item() == 1.0
    weights = (sigmoid(0.5), 0.5)
    assert metrics["weights"].tolist() == pytest.approx(weights)
    effective = sum(weights) ** 2 / sum(w * w for w in weights)
    assert effective_sample_size(metrics["weights"]).item() == pytest.approx(effective)


def test_policy_equal_to_reference_gives_mean_weight_times_ln_2() -> None:
    pairs = (POLICY_CHOSEN, POLICY_REJECTED, POLICY_CHOSEN, POLICY_REJECTED, CHOSEN_REWARDS, REJECTED_REWARDS)
    _, metrics = wdpo_losses(*pairs, 0.1, 3.0)
    assert wdpo_loss(*pairs, 0.1, 3.0).item() == pytest.approx(metrics["weights"].mean().item() * math.log(2), abs=1e-7)


def test_weights_lie_between_one_half_and_one_for_ordered_pairs() -> None:
    gaps = torch.linspace(0, 20, 50, dtype=torch.float64)
    weights = reward_weights(gaps, torch.zeros_like(gaps), 1.5)
    assert weights[0] == 0.5
    assert (weights.diff() > 0).all()
    assert (weights < 1).all()
    assert (reward_weights(gaps, torch.zeros_like(gaps), 0.0) == 0.5).all()


def test_gradient_raises_chosen_and_lowers_rejected_in_proportion_to_the_weight() -> None:
    chosen = POLICY_CHOSEN.clone().requires_grad_()
    rejected = POLICY_REJECTED.clone().requires_grad_()
    loss = wdpo_loss(chosen, rejected, POLICY_CHOSEN, POLICY_REJECTED, CHOSEN_REWARDS, REJECTED_REWARDS, 0.2, 0.7)
    loss.backward()
    # At I = ½ the derivative of −R·log I is −R·β₁/2 a pair, and the mean halves it again.
    expected = torch.tensor([-sigmoid(1.4), -0.5]) * 0.2 / 2 / 2
    torch.testing.assert_close(chosen.grad, expected)
    torch.testing.assert_close(rejected.grad, -expected)


@pytest.mark.parametrize("beta1", [0.01, 0.1, 1.0])
def test_beta2_zero_is_half_of_trl_sigmoid_loss(beta1: float, trl_sigmoid_loss) -> None:
    generator = torch.Generator().manual_seed(3)
    logps = [-50 * torch.rand(16, generator=generator) for _ in range(4)]
    rewards = [torch.randn(16, generator=generator) for _ in range(2)]
    loss = wdpo_loss(*logps, *rewards, beta1, 0.0)
    torch.testing.assert_close(loss, 0.5 * trl_sigmoid_loss(*logps, beta1))


def test_best_of_n_is_a_mean_over_tokens() -> None:
    chosen = POLICY_CHOSEN.clone().requires_grad_()
    loss = best_of_n_loss(chosen, torch.tensor([5, 15]), CHOSEN_REWARDS)
    _, metrics = best_of_n_losses(chosen, CHOSEN_REWARDS)
    assert loss.item() == pytest.approx((10 + 20) / (5 + 15))
    assert metrics["logps/chosen"].mean().item() == -15.0
    assert metrics["rm/chosen"].mean().item() == 1.5
    loss.backward()
    torch.testing.assert_close(chosen.grad, torch.tensor([-1 / 20, -1 / 20]))


def test_hypo_equals_hand_computed_values() -> None:
    # The pairs of wDPO's test, without weights: log-ratios +1 and −1, I = σ(0.5·2); 0 and +3, I = σ(0.5·−3).
    # Online samples: log-ratios +2, −1 and 0, so a divergence of ⅓.
    online = torch.tensor([-4.0, -6.0, -5.0])
    reference = torch.tensor([-6.0, -5.0, -5.0])
    pairs = (POLICY_CHOSEN, POLICY_REJECTED, REFERENCE_CHOSEN, REFERENCE_REJECTED)
    loss = hypo_loss(*pairs, online, reference, 0.5, 0.3)
    dpo = -(math.log(sigmoid(1.0)) + math.log(sigmoid(-1.5))) / 2
    assert loss.item() == pytest.approx(dpo + 0.3 / 3, rel=1e-6)
    assert reverse_kl_losses(online, reference)[1]["kl"].mean().item() == pytest.approx(1 / 3)
    assert dpo_losses(*pairs, 0.5)[1]["rewards/margins"].mean().item() == pytest.approx(0.5 * (2 - 3) / 2)


def test_hypo_without_offline_gradient_pushes_down_what_the_policy_overrates() -> None:
    online = torch.tensor([-4.0, -6.0, -5.0]).requires_grad_()
    reference = torch.tensor([-6.0, -5.0, -5.0])
    pairs = [POLICY_CHOSEN, POLICY_REJECTED, REFERENCE_CHOSEN, REFERENCE_REJECTED]
    loss = hypo_loss(*pairs, online, reference, 0.5, 0.3)
    loss.backward()
    # λ/3 times the log-ratio of each.
    torch.testing.assert_close(online.grad, torch.tensor([0.2, -0.1, 0.0]))


def test_the_score_function_gradient_is_that_of_the_divergence() -> None:
    """The expectation runs over all responses of a vocabulary of seven, weighted by the policy, so it is exact."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, generator=generator, dtype=torch.float64, requires_grad=True)
    reference = torch.randn(7, generator=generator, dtype=torch.float64).log_softmax(0)
    policy = logits.log_softmax(0)
    divergence = (policy.exp() * (policy - reference)).sum()
    (expected,) = torch.autograd.grad(divergence, logits, retain_graph=True)

    losses, values = reverse_kl_losses(policy, reference)
    often = policy.detach().exp()
    (found,) = torch.autograd.grad((often * losses).sum(), logits)
    torch.testing.assert_close(found, expected)
    assert (often * values["kl"]).sum().item() == pytest.approx(divergence.item())
    # What differentiating the log-ratio itself would give: nothing.
    (naive,) = torch.autograd.grad((often * (logits.log_softmax(0) - reference)).sum(), logits)
    torch.testing.assert_close(naive, torch.zeros(7, dtype=torch.float64), atol=1e-12, rtol=0)
