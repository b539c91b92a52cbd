"""`hypo`, beyond the paper: DPO on fixed pairs, plus the divergence from the reference on online samples."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from pydantic import Field

from optune_core.losses.loss import Batch, Loss, RowLosses


class HyPO(Loss):
    """HyPO (Song et al. 2024): DPO (Eq. 5) on the fixed pairs of `prompts.pairs`, plus λ·KL(π_θ ‖ π_ref) on responses
    that every iteration samples from π_t. The original uses π_0 as reference (`training.reference: initial`)."""

    type: Literal["hypo"] = "hypo"
    beta1: float = Field(gt=0.0)
    """β₁ of DPO; the greater, the closer the policy stays to the reference."""
    kl_coefficient: float = Field(gt=0.0)
    """λ, the weight of the divergence."""
    rho: float = Field(default=0.5, gt=0.0, le=1.0)
    """Share of the prompts, drawn at random, that every iteration samples responses for."""

    tempers: ClassVar[tuple[str, ...]] = ("beta1",)

    @property
    def description(self) -> str:
        return f"HyPO, β₁ = {self.beta1:g}, λ = {self.kl_coefficient:g}, samples of ρ = {self.rho:g}"

    @property
    def implicit_beta(self) -> float:
        return self.beta1

    @property
    def online_share(self) -> float:
        return self.rho

    def losses(self, batch: Batch) -> RowLosses:
        """Return the part of each row in `equations.hypo_loss` of the step, float32, (P,).

        That loss is a mean over pairs plus a mean over online samples. The mean over all rows equals it if the loss of
        each row is divided by the share that its kind has among the rows.
        """
        import torch

        from optune_core.losses.equations import dpo_losses, reverse_kl_losses

        online, share = batch.online, batch.online_share
        dpo, pair_metrics = dpo_losses(
            batch.policy_chosen_logps,
            batch.policy_rejected_logps,
            batch.reference_chosen_logps,
            batch.reference_rejected_logps,
            self.beta1,
        )
        divergence, sample_metrics = reverse_kl_losses(batch.policy_chosen_logps, batch.reference_chosen_logps)
        losses = torch.where(online, self.kl_coefficient * divergence / (share or 1.0), dpo / ((1.0 - share) or 1.0))
        pair_metrics |= {"rm/chosen": batch.chosen_rewards, "rm/rejected": batch.rejected_rewards}
        metrics = {name: value.masked_fill(online, math.nan) for name, value in pair_metrics.items()}
        return RowLosses(
            losses, metrics | {name: value.masked_fill(~online, math.nan) for name, value in sample_metrics.items()}
        )
