"""`best_of_n`, beyond the paper: supervised fine-tuning on the chosen responses of the replay set."""

from __future__ import annotations

from typing import ClassVar, Literal

from optune_core.losses.loss import Batch, Loss, RowLosses


class BestOfN(Loss):
    """Mean negative log-likelihood of the tokens of the chosen responses, without a reference."""

    type: Literal["best_of_n"] = "best_of_n"

    needs_reference: ClassVar[bool] = False
    needs_rejected: ClassVar[bool] = False
    per_token: ClassVar[bool] = True

    @property
    def description(self) -> str:
        return "best of N: supervised fine-tuning on the chosen responses"

    def losses(self, batch: Batch) -> RowLosses:
        """Return −log π(y_w|x) of each chosen response, float32, (P,)."""
        from optune_core.losses.equations import best_of_n_losses

        return RowLosses(*best_of_n_losses(batch.policy_chosen_logps, batch.chosen_rewards))
