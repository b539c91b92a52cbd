"""Losses by the name that a configuration gives them, on a pack of pairs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from optune_core.config.schema import Training
from optune_core.losses.equations import best_of_n_losses, dpo_losses, reverse_kl_losses, wdpo_losses
from optune_core.training.layout import PackedRow


@dataclass(frozen=True)
class PackData:
    """A pack as it is computed: P rows, each a pair or an online sample."""

    row: PackedRow
    reference_logps: Tensor | None
    """(2, P): chosen and rejected; None: the loss has no reference."""
    rewards: Tensor
    """(2, P)."""
    counted: bool
    online: Tensor
    """bool, (P,): which rows are online samples."""
    online_share: float
    """Of them among the rows of the whole step."""

    def to(self, device: torch.device) -> PackData:
        """The same on a device."""
        reference = None if self.reference_logps is None else self.reference_logps.to(device)
        return replace(
            self,
            row=self.row.to(device),
            reference_logps=reference,
            rewards=self.rewards.to(device),
            online=self.online.to(device),
        )


@dataclass(frozen=True)
class Objective:
    losses: Callable[[Training, PackData, Tensor, Tensor], tuple[Tensor, dict[str, Tensor]]]
    """From log π(y_w|x) and log π(y_l|x), (P,) each, to a loss a row, (P,), and values a row to log, NaN for none."""
    needs_reference: bool
    needs_rejected: bool
    """False: the rejected responses are not even computed."""
    per_token: bool
    """A step's loss is its rows' sum over the tokens of their chosen responses, instead of over their number."""


def _wdpo(
    config: Training, pack: PackData, policy_chosen_logps: Tensor, policy_rejected_logps: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    assert config.beta1 is not None and config.beta2 is not None, "the configuration of this loss has them"
    assert pack.reference_logps is not None
    reference, rewards = pack.reference_logps, pack.rewards
    return wdpo_losses(
        policy_chosen_logps,
        policy_rejected_logps,
        reference[0],
        reference[1],
        rewards[0],
        rewards[1],
        config.beta1,
        config.beta2,
    )


def _best_of_n(
    config: Training, pack: PackData, policy_chosen_logps: Tensor, policy_rejected_logps: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    return best_of_n_losses(policy_chosen_logps, pack.rewards[0])


def _hypo(
    config: Training, pack: PackData, policy_chosen_logps: Tensor, policy_rejected_logps: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """`hypo_loss` of the whole step, divided up: its mean over pairs and its mean over samples are both sums over
    rows, so each row counts by the inverse of its kind's share."""
    assert config.beta1 is not None and config.kl_coefficient is not None, "the configuration of this loss has them"
    assert pack.reference_logps is not None
    reference, online, share = pack.reference_logps, pack.online, pack.online_share
    dpo, of_pairs = dpo_losses(policy_chosen_logps, policy_rejected_logps, reference[0], reference[1], config.beta1)
    divergence, of_samples = reverse_kl_losses(policy_chosen_logps, reference[0])
    losses = torch.where(online, config.kl_coefficient * divergence / (share or 1.0), dpo / ((1.0 - share) or 1.0))
    of_pairs |= {"rm/chosen": pack.rewards[0], "rm/rejected": pack.rewards[1]}
    values = {name: value.masked_fill(online, math.nan) for name, value in of_pairs.items()}
    return losses, values | {name: value.masked_fill(~online, math.nan) for name, value in of_samples.items()}


OBJECTIVES = {
    "wdpo": Objective(_wdpo, needs_reference=True, needs_rejected=True, per_token=False),
    "hypo": Objective(_hypo, needs_reference=True, needs_rejected=True, per_token=False),
    "best_of_n": Objective(_best_of_n, needs_reference=False, needs_rejected=False, per_token=True),
}
"""Keyed by `training.loss`."""
