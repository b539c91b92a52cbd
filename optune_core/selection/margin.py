"""`margin`, beyond the paper: smallest reward margin first."""

from __future__ import annotations

from typing import ClassVar, Literal

import pyarrow as pa

from optune_core.selection.selector import RankingSelector, Values, numbers, unpaired_first


class Margin(RankingSelector):
    """Regenerate the prompts with the smallest reward margin r_w − r_l.

    A Bradley-Terry model (Eq. 1) is fitted to differences between two responses to one prompt, so margins can be
    compared across prompts and rewards cannot. Pairs with a small margin also have the least weight in wDPO (Eq. 6).
    """

    type: Literal["margin"] = "margin"
    columns: ClassVar[tuple[str, ...]] = ("chosen_reward", "rejected_reward")

    def rank(self, replay: pa.Table) -> Values:
        """Return the reward margin, float64, (prompts,); minus infinity where there is no pair.

        Args:
            replay: chosen_reward and rejected_reward, float64, null where a prompt has no pair.
        """
        chosen = numbers(replay, "chosen_reward")
        return unpaired_first(chosen - numbers(replay, "rejected_reward"), chosen)
