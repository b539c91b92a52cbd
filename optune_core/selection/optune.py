"""`optune`, the paper's ranking: lowest chosen reward first."""

from __future__ import annotations

from typing import ClassVar, Literal

import pyarrow as pa

from optune_core.selection.selector import RankingSelector, Values, numbers, unpaired_first


class Optune(RankingSelector):
    """Regenerate the prompts whose preferred response has the lowest reward (section 3.1)."""

    type: Literal["optune"] = "optune"
    columns: ClassVar[tuple[str, ...]] = ("chosen_reward",)

    def rank(self, replay: pa.Table) -> Values:
        """Return the reward of the chosen response, float64, (prompts,); minus infinity where there is no pair.

        Args:
            replay: chosen_reward, float64, null where a prompt has no pair.
        """
        chosen = numbers(replay, "chosen_reward")
        return unpaired_first(chosen.copy(), chosen)
