"""The tensors of a pack, the rows that share a forward pass."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from optune_core.losses.loss import Batch
from optune_core.training.layout import PackedRow


@dataclass(frozen=True)
class PackData:
    """The tensors of P rows that share a forward pass; each row is a pair or an online sample."""

    row: PackedRow
    """Token ids and layout of the rows."""
    reference_logps: Tensor | None
    """float32, (2, P): log π_ref(y|x) of chosen and rejected; None: the loss has no reference."""
    rewards: Tensor
    """float32, (2, P): explicit rewards of chosen and rejected; NaN for online samples."""
    counted: bool
    """True: these rows count in the loss of the step; False: they are computed only so that this process takes part
    in every exchange of gradients."""
    online: Tensor
    """bool, (P,): True for online samples."""
    online_share: float
    """Share of online samples among the rows of the optimizer step, in [0, 1]."""

    def to(self, device: torch.device) -> PackData:
        """Return the same rows with their tensors on a device."""
        reference = None if self.reference_logps is None else self.reference_logps.to(device)
        return replace(
            self,
            row=self.row.to(device),
            reference_logps=reference,
            rewards=self.rewards.to(device),
            online=self.online.to(device),
        )

    def batch(self, chosen_logps: Tensor, rejected_logps: Tensor) -> Batch:
        """Return the input of a loss.

        Args:
            chosen_logps, rejected_logps: log π_θ(y|x) under the policy, float32, (P,).
        """
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
