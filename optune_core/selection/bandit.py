"""`bandit`, beyond the paper: each prompt an arm, the gain of its chosen reward what it pays."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa

from optune_core.selection.selector import RankingSelector, Values, numbers, unpaired_first

OPTIMISM = math.sqrt(2)
"""c, in standard deviations of the gain: √2 makes the bound one that a sub-Gaussian gain passes with a chance of 1/t at
most (UCB, Auer et al. 2002; Lattimore & Szepesvári 2020, chapter 7). In deviations because rewards have no unit."""


class Bandit(RankingSelector):
    """Regenerate the prompts with the highest upper confidence bound of the gain.

        g + c·σ·√(log t / n)

    n, g: how often the prompt was regenerated while it had a pair, and the mean gain of its chosen reward by that
    (0 where it kept its pair); t = Σ n; σ² = Σ n·(g − ḡ)² / t with ḡ = Σ n·g / t; c = OPTIMISM.

    There are as many arms as prompts and few pulls of each, so an arm that was never pulled does not come before all
    others, which would be random selection until each had its turn: it counts as pulled once with the mean gain ḡ
    (first-play urgency, Gelly & Wang 2006). In iteration 1 no arm was pulled and all ranks are equal. t is large, so
    being regenerated rarely counts for little, and the gain decides between prompts that were regenerated as often.
    """

    type: Literal["bandit"] = "bandit"
    columns: ClassVar[tuple[str, ...]] = ("chosen_reward", "regenerations", "gain_mean")

    def rank(self, replay: pa.Table) -> Values:
        """Return the negative upper confidence bound.

        Args:
            replay: chosen_reward (float64, null without a pair), regenerations, gain_mean (float64, null if never).
        """
        chosen, pulls = numbers(replay, "chosen_reward"), numbers(replay, "regenerations")
        total = pulls.sum()
        if total == 0:
            return unpaired_first(np.zeros(len(chosen)), chosen)
        gains = np.nan_to_num(numbers(replay, "gain_mean"))
        # fsum is exact, so the sums do not depend on the order of the file.
        mean = math.fsum(pulls * gains) / total
        deviation = math.sqrt(math.fsum(pulls * (gains - mean) ** 2) / total)
        gains[pulls == 0] = mean
        bounds = gains + OPTIMISM * deviation * np.sqrt(math.log(total) / np.maximum(pulls, 1))
        return unpaired_first(-bounds, chosen)
