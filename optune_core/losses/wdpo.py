"""`wdpo`: weighted DPO (Eq. 6), the paper's loss."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from optune_core.losses.loss import Batch, Loss, RowLosses


class WeightedDpo(Loss):
    """DPO whose pairs are weighted by R = σ(β₂·(r_w − r_l)). At β₂ = 0 it is half of DPO's loss (Eq. 5)."""

    type: Literal["wdpo"] = "wdpo"
    beta1: float = Field(gt=0.0)
    """β₁ of Eq. 6; the greater, the closer the policy stays to the reference. The paper gives no value, so there is no
    default."""
    beta2: float = Field(ge=0.0)
    """β₂ of Eq. 6, the steepness of the weight R. The paper gives no value, so there is no default."""

    tempers: ClassVar[tuple[str, ...]] = ("beta1",)

    @property
    def label(self) -> str:
        return f"wDPO, β₂ = {self.beta2:g}" if self.beta2 else "DPO"

    @property
    def description(self) -> str:
        dpo = "" if self.beta2 else " (DPO, halved)"
        return f"weighted DPO, β₁ = {self.beta1:g}, β₂ = {self.beta2:g}{dpo}"

    @property
    def implicit_beta(self) -> float:
        return self.beta1

    def losses(self, batch: Batch) -> RowLosses:
        """Return −R·log I of each pair (Eq. 6), float32, (P,)."""
        from optune_core.losses.equations import wdpo_losses

        return RowLosses(
            *wdpo_losses(
                batch.policy_chosen_logps,
                batch.policy_rejected_logps,
                batch.reference_chosen_logps,
                batch.reference_rejected_logps,
                batch.chosen_rewards,
                batch.rejected_rewards,
                self.beta1,
                self.beta2,
            )
        )

    def pair_weights(self, margins: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return R of each pair (Eq. 6), float64, (pairs,)."""
        return 0.5 * (1.0 + np.tanh(self.beta2 * margins / 2.0))
