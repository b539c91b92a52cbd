"""`margin`, beyond the paper: smallest reward margin first."""

from __future__ import annotations

from typing import ClassVar, Literal

import pyarrow as pa

from optune_core.selection.selector import RankingSelector, Values, numbers, unpaired_first


class Margin(RankingSelector):
    """Regenerate the prompts with the smallest reward margin r_w − r_l.

    A difference between two responses to one prompt is what a Bradley-Terry model (Eq. 1) is fitted to, so margins
    compare across prompts where rewards do not. A small one is also what wDPO (Eq. 6) gives the least weight.
    """

    type: Literal["margin"] = "margin"
    columns: ClassVar[tuple[str, ...]] = ("chosen_reward", "rejected_reward")

    def rank(self, replay: pa.Table) -> Values:
        """Return the reward margin.

        Args:
            replay: chosen_reward and rejected_reward, float64, null where a prompt has no pair.
        """
        chosen = numbers(replay, "chosen_reward")
        return unpaired_first(chosen - numbers(replay, "rejected_reward"), chosen)
