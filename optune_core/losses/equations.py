"""What training minimises, as pure functions of tensors: Eq. 5 and 6 of the paper, and two losses beyond it."""

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


def dpo_losses(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    beta1: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """DPO, Eq. 5, pair by pair, before the mean: −log I.

    Args: as `wdpo_loss`.

    Returns:
        losses, shape (batch,), and detached values a pair, shape (batch,) each, keyed as `wdpo_loss`'s metrics.
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
    """Eq. 6 pair by pair, before the mean: −R·log I.

    Args: as `wdpo_loss`.

    Returns:
        losses, shape (batch,), and detached values a pair, shape (batch,) each, keyed as `wdpo_loss`'s metrics.
    """
    unweighted, values = dpo_losses(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta1
    )
    weights = reward_weights(chosen_rewards, rejected_rewards, beta2).to(unweighted.dtype)
    return weights * unweighted, values | {
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


def best_of_n_losses(policy_chosen_logps: Tensor, chosen_rewards: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Best-of-N response by response, before the mean: −log π(y_w|x).

    Args: as `best_of_n_loss`.

    Returns:
        losses, shape (batch,), and detached values a response, shape (batch,) each.
    """
    return -policy_chosen_logps, {"logps/chosen": policy_chosen_logps.detach(), "rm/chosen": chosen_rewards}


def best_of_n_loss(
    policy_chosen_logps: Tensor, chosen_tokens: Tensor, chosen_rewards: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Supervised fine-tuning on the replay set's winners, which the paper leaves open: −Σ log π(y_w|x) / Σ |y_w|.

    The mean is over the response tokens of the batch, as supervised fine-tuning has it (TRL's SFTTrainer,
    transformers' Trainer): every token counts the same, so a long response counts for more than a short one. There is
    no reference, and no rejected response.

    Args:
        policy_chosen_logps: log π(y_w|x) summed over response tokens, shape (batch,), float32 or wider; gradients flow
            through it.
        chosen_tokens: |y_w|, response tokens, shape (batch,).
        chosen_rewards: explicit rewards of the reward model, shape (batch,); logged only.

    Returns:
        The loss in nats a token, a scalar, and metrics, detached scalars.
    """
    losses, values = best_of_n_losses(policy_chosen_logps, chosen_rewards)
    return losses.sum() / chosen_tokens.sum(), {name: value.mean() for name, value in values.items()}


def reverse_kl_losses(policy_logps: Tensor, reference_logps: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """KL(π_θ ‖ π_ref) sample by sample, with a score-function gradient (HyPO, Song et al. 2024).

    The value of each is the log-ratio Δ = log(π_θ(y|x) / π_ref(y|x)), whose mean over y ~ π_θ is the divergence; its
    gradient is Δ·∇log π_θ(y|x), whose mean is the divergence's. (∇Δ itself would have mean 0: the divergence also
    depends on π_θ through what is sampled.) Exact in the mean while y comes from π_θ, so on fresh samples; on older
    ones it is the gradient of Δ²/2, which still pulls the log-ratio of what was sampled to 0.

    Args:
        policy_logps: log π_θ(y|x) of sampled responses, summed over response tokens, shape (samples,); gradients flow
            through it.
        reference_logps: the same under the reference, shape (samples,).

    Returns:
        losses, shape (samples,), and detached values a sample: `kl`, the log-ratio.
    """
    logratios = (policy_logps - reference_logps).detach()
    # The second factor is 0, with the gradient of log π_θ.
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
) -> tuple[Tensor, dict[str, Tensor]]:
    """HyPO (Song et al. 2024): DPO on offline pairs, and the divergence from the reference on online samples.

    L = mean(−log I) + λ·KL(π_θ ‖ π_ref), I as in Eq. 5, the divergence as in `reverse_kl_losses`.

    Args:
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps: of the offline
            pairs, as `wdpo_loss`.
        policy_online_logps, reference_online_logps: of the online samples, as `reverse_kl_losses`, shape (samples,).
        beta1: β of DPO, > 0.
        kl_coefficient: λ > 0.

    Returns:
        The loss, a scalar, and metrics, detached scalars: DPO's, and `kl`.
    """
    dpo, of_pairs = dpo_losses(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta1
    )
    divergence, of_samples = reverse_kl_losses(policy_online_logps, reference_online_logps)
    metrics = {name: value.mean() for name, value in (of_pairs | of_samples).items()}
    return dpo.mean() + kl_coefficient * divergence.mean(), metrics
