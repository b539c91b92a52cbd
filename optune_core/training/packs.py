"""A pack of pairs as it is computed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from optune_core.losses.loss import Batch
from optune_core.training.layout import PackedRow


@dataclass(frozen=True)
class PackData:
    """P rows that share a forward pass, each a pair or an online sample."""

    row: PackedRow
    reference_logps: Tensor | None
    """float32, (2, P): chosen and rejected; None: the loss has no reference."""
    rewards: Tensor
    """float32, (2, P): chosen and rejected."""
    counted: bool
    """Whether this process adds these rows to the loss of the step."""
    online: Tensor
    """bool, (P,): which rows are online samples."""
    online_share: float
    """Share of online samples among the rows of the complete step."""

    def to(self, device: torch.device) -> PackData:
        """Return the same on a device."""
        reference = None if self.reference_logps is None else self.reference_logps.to(device)
        return replace(
            self,
            row=self.row.to(device),
            reference_logps=reference,
            rewards=self.rewards.to(device),
            online=self.online.to(device),
        )

    def batch(self, chosen_logps: Tensor, rejected_logps: Tensor) -> Batch:
        """Return what a loss is given, with the policy's log-probabilities, float32, (P,) each."""
        reference = torch.full_like(self.rewards, torch.nan) if self.reference_logps is None else self.reference_logps
        return Batch(
            policy_chosen_logps=chosen_logps,
            policy_rejected_logps=rejected_logps,
            reference_chosen_logps=reference[0],
            reference_rejected_logps=reference[1],
            chosen_rewards=self.rewards[0],
            rejected_rewards=self.rewards[1],
            online=self.online,
            online_share=self.online_share,
        )
