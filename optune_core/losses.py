"""Equations 1, 5 and 6 as pure functions of tensors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def reward_weights(chosen_rewards: Tensor, rejected_rewards: Tensor, beta2: float) -> Tensor:
    """R of Eq. 6: σ(β₂·(r(x, y_w) − r(x, y_l))).

    Args:
        chosen_rewards, rejected_rewards: explicit rewards of the reward model, shape (batch,).
        beta2: β₂ ≥ 0. With 0 every weight is ½.

    Returns:
        Weights in (0, 1), shape (batch,), dtype of the rewards; in [½, 1) where the chosen reward is the higher.
    """
    return torch.sigmoid(beta2 * (chosen_rewards - rejected_rewards))


def wdpo_losses(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    chosen_rewards: Tensor,
    rejected_rewards: Tensor,
    beta1: float,
    beta2: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Eq. 6 pair by pair, before the mean: −R·log I.

    Args: as `wdpo_loss`.

    Returns:
        losses, shape (batch,), and detached values a pair, shape (batch,) each, keyed as `wdpo_loss`'s metrics.
    """
    chosen_logratios = policy_chosen_logps - reference_chosen_logps
    rejected_logratios = policy_rejected_logps - reference_rejected_logps
    weights = reward_weights(chosen_rewards, rejected_rewards, beta2).to(chosen_logratios.dtype)
    losses = -weights * F.logsigmoid(beta1 * chosen_logratios - beta1 * rejected_logratios)

    implicit_chosen = beta1 * chosen_logratios.detach()
    implicit_rejected = beta1 * rejected_logratios.detach()
    values = {
        "rewards/chosen": implicit_chosen,
        "rewards/rejected": implicit_rejected,
        "rewards/margins": implicit_chosen - implicit_rejected,
        "rewards/accuracies": (implicit_chosen > implicit_rejected).to(losses.dtype),
        "logps/chosen": policy_chosen_logps.detach(),
        "logps/rejected": policy_rejected_logps.detach(),
        "rm/chosen": chosen_rewards,
        "rm/rejected": rejected_rewards,
        "rm/margins": chosen_rewards - rejected_rewards,
        "weights": weights.detach(),
    }
    return losses, values


def wdpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    chosen_rewards: Tensor,
    rejected_rewards: Tensor,
    beta1: float,
    beta2: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted DPO, Eq. 6: the plain mean over the batch of −R·log I.

    I = σ(β₁·log(π(y_w|x)/π_ref(y_w|x)) − β₁·log(π(y_l|x)/π_ref(y_l|x))), R = σ(β₂·(r(x, y_w) − r(x, y_l))).
    At β₂ = 0 this is half of DPO's loss (Eq. 5); where policy and reference agree it is mean(R)·ln 2.

    Args:
        policy_chosen_logps, policy_rejected_logps: log π(y|x) summed over response tokens, shape (batch,), float32
            or wider; gradients flow through them.
        reference_chosen_logps, reference_rejected_logps: the same under the reference, shape (batch,).
        chosen_rewards, rejected_rewards: explicit rewards of the reward model, shape (batch,).
        beta1: β₁ > 0, the strength of the tie to the reference.
        beta2: β₂ ≥ 0, the sharpness of the weight.

    Returns:
        The loss, a scalar, and metrics, detached scalars: `rewards/*` are implicit rewards β₁·log(π/π_ref),
        `rm/*` the reward model's, `weights/mean` is mean(R), `weights/effective_sample_size` is (ΣR)²/ΣR² in pairs.
    """
    losses, values = wdpo_losses(
        policy_chosen_logps,
        policy_rejected_logps,
        reference_chosen_logps,
        reference_rejected_logps,
        chosen_rewards,
        rejected_rewards,
        beta1,
        beta2,
    )
    weights = values.pop("weights")
    metrics = {name: value.mean() for name, value in values.items()}
    metrics["weights/mean"] = weights.mean()
    metrics["weights/effective_sample_size"] = weights.sum() ** 2 / (weights**2).sum()
    return losses.mean(), metrics
