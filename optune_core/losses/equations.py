"""Losses as pure functions of tensors: Eq. 5 and 6 of the paper, and two losses beyond it.

Training runs the functions whose name ends in `_losses`, which return one value a row; `wdpo_loss`, `best_of_n_loss`
and `hypo_loss` are the losses of a batch as the papers write them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def reward_weights(chosen_rewards: Tensor, rejected_rewards: Tensor, beta2: float) -> Tensor:
    """Return R of Eq. 6: σ(β₂·(r(x, y_w) − r(x, y_l))).

    Args:
        chosen_rewards, rejected_rewards: explicit rewards of the reward model, shape (batch,).
        beta2: β₂ ≥ 0. With 0 every weight is ½.

    Returns:
        Weights in (0, 1), shape (batch,), dtype of the rewards; in [½, 1) where the chosen reward is higher.
    """
    return torch.sigmoid(beta2 * (chosen_rewards - rejected_rewards))


def effective_sample_size(weights: Tensor) -> Tensor:
    """Return the effective sample size (ΣR)²/ΣR² in pairs, a scalar, of weights R of shape (batch,)."""
    return weights.sum() ** 2 / (weights**2).sum()


def dpo_losses(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    beta1: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the DPO loss (Eq. 5) of each pair, before the mean: −log I.

    I = σ(β₁·log(π(y_w|x)/π_ref(y_w|x)) − β₁·log(π(y_l|x)/π_ref(y_l|x))).

    Args:
        policy_chosen_logps, policy_rejected_logps: log π(y|x) summed over response tokens, shape (batch,), float32
            or wider; gradients flow through them.
        reference_chosen_logps, reference_rejected_logps: log π_ref(y|x) of the same responses, shape (batch,).
        beta1: β₁ > 0; the greater, the closer the policy stays to the reference.

    Returns:
        The losses, shape (batch,), and detached metrics, shape (batch,) each: `rewards/*` are the implicit rewards
        β₁·log(π/π_ref), `logps/*` the policy's log-probabilities.
    """
    chosen_logratios = policy_chosen_logps - reference_chosen_logps
    rejected_logratios = policy_rejected_logps - reference_rejected_logps
    losses = -F.logsigmoid(beta1 * chosen_logratios - beta1 * rejected_logratios)

    implicit_chosen = beta1 * chosen_logratios.detach()
    implicit_rejected = beta1 * rejected_logratios.detach()
    return losses, {
        "rewards/chosen": implicit_chosen,
        "rewards/rejected": implicit_rejected,
        "rewards/margins": implicit_chosen - implicit_rejected,
        "rewards/accuracies": (implicit_chosen > implicit_rejected).to(losses.dtype),
        "logps/chosen": policy_chosen_logps.detach(),
        "logps/rejected": policy_rejected_logps.detach(),
    }


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
    """Return the weighted DPO loss (Eq. 6) of each pair, before the mean: −R·log I, R = σ(β₂·(r(x, y_w) − r(x, y_l))).

    At β₂ = 0 this is half of DPO's loss (Eq. 5); where policy and reference agree its mean is mean(R)·ln 2.

    Args:
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta1: as for
            `dpo_losses`.
        chosen_rewards, rejected_rewards: explicit rewards of the reward model, shape (batch,).
        beta2: β₂ ≥ 0, the steepness of the weight R.

    Returns:
        The losses, shape (batch,), and detached metrics, shape (batch,) each: those of `dpo_losses`, `rm/*` of the
        explicit rewards, and `weights`, R.
    """
    unweighted, metrics = dpo_losses(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta1
    )
    weights = reward_weights(chosen_rewards, rejected_rewards, beta2).to(unweighted.dtype)
    return weights * unweighted, metrics | {
        "rm/chosen": chosen_rewards,
        "rm/rejected": rejected_rewards,
        "rm/margins": chosen_rewards - rejected_rewards,
        "weights": weights.detach(),
    }


def wdpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    chosen_rewards: Tensor,
    rejected_rewards: Tensor,
    beta1: float,
    beta2: float,
) -> Tensor:
    """Return weighted DPO (Eq. 6) of a batch, a scalar: the mean of `wdpo_losses`."""
    losses, _ = wdpo_losses(
        policy_chosen_logps,
        policy_rejected_logps,
        reference_chosen_logps,
        reference_rejected_logps,
        chosen_rewards,
        rejected_rewards,
        beta1,
        beta2,
    )
    return losses.mean()


def best_of_n_losses(policy_chosen_logps: Tensor, chosen_rewards: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the best-of-N loss of each response, before the mean: −log π(y_w|x).

    This is supervised fine-tuning on the chosen responses of the replay set; the paper does not define its loss.
    Training divides the sum by the response tokens of the batch, as TRL's SFTTrainer and transformers' Trainer do:
    every token counts the same, so a long response counts for more than a short one. There is neither a reference nor
    a rejected response.

    Args:
        policy_chosen_logps: log π(y_w|x) summed over response tokens, shape (batch,), float32 or wider; gradients flow
            through it.
        chosen_rewards: explicit rewards of the reward model, shape (batch,); logged only.

    Returns:
        The losses, shape (batch,), and detached metrics, shape (batch,) each.
    """
    return -policy_chosen_logps, {"logps/chosen": policy_chosen_logps.detach(), "rm/chosen": chosen_rewards}


def best_of_n_loss(policy_chosen_logps: Tensor, chosen_tokens: Tensor, chosen_rewards: Tensor) -> Tensor:
    """Return the best-of-N loss of a batch in nats a token, a scalar: the sum of `best_of_n_losses` over all tokens.

    Args:
        policy_chosen_logps, chosen_rewards: as for `best_of_n_losses`.
        chosen_tokens: number of response tokens |y_w|, shape (batch,).
    """
    losses, _ = best_of_n_losses(policy_chosen_logps, chosen_rewards)
    return losses.sum() / chosen_tokens.sum()


def reverse_kl_losses(policy_logps: Tensor, reference_logps: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return an estimate of KL(π_θ ‖ π_ref) for each sample, with a score-function gradient (HyPO, Song et al. 2024).

    The value is the log-ratio Δ = log(π_θ(y|x) / π_ref(y|x)), whose mean over y ~ π_θ is the divergence. The gradient
    is Δ·∇log π_θ(y|x), whose mean is the gradient of the divergence. (∇Δ itself has mean 0, since the divergence also
    depends on π_θ through the distribution of y.) Both are unbiased for samples of π_θ itself. For samples of an older
    policy, the gradient is that of Δ²/2, which still reduces the log-ratio of the sampled responses.

    Args:
        policy_logps: log π_θ(y|x) of sampled responses, summed over response tokens, shape (samples,); gradients flow
            through it.
        reference_logps: log π_ref(y|x) of the same responses, shape (samples,).

    Returns:
        The losses, shape (samples,), and the detached metric `kl`, shape (samples,): the log-ratio.
    """
    logratios = (policy_logps - reference_logps).detach()
    # The value of the second factor is 0, and its gradient is that of log π_θ.
    return logratios + logratios * (policy_logps - policy_logps.detach()), {"kl": logratios}


def hypo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    policy_online_logps: Tensor,
    reference_online_logps: Tensor,
    beta1: float,
    kl_coefficient: float,
) -> Tensor:
    """Return HyPO (Song et al. 2024) of a batch, a scalar: mean(−log I) of offline pairs + λ·KL(π_θ ‖ π_ref).

    Args:
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta1: as for
            `dpo_losses`; they belong to the offline pairs.
        policy_online_logps, reference_online_logps: as for `reverse_kl_losses`, shape (samples,); they belong to the
            online samples, from which the divergence is estimated.
        kl_coefficient: λ > 0, the weight of the divergence.
    """
    dpo, _ = dpo_losses(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta1
    )
    divergence, _ = reverse_kl_losses(policy_online_logps, reference_online_logps)
    return dpo.mean() + kl_coefficient * divergence.mean()
