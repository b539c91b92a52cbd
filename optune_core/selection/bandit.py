"""`bandit`, beyond the paper: each prompt is an arm, and the gain of its chosen reward is the payoff."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa

from optune_core.selection.selector import RankingSelector, Values, numbers, unpaired_first

OPTIMISM = math.sqrt(2)
"""c, in standard deviations of the gain, since rewards have no unit. With √2 the mean of a sub-Gaussian gain exceeds
the bound with a probability of at most 1/t (UCB, Auer et al. 2002; Lattimore & Szepesvári 2020, chapter 7)."""


class Bandit(RankingSelector):
    """Regenerate the prompts with the highest upper confidence bound of the gain.

        g + c·σ·√(log t / n)

    n: how often the prompt was regenerated while it had a pair; g: the mean gain of its chosen reward by that, where a
    regeneration after which the prompt kept its pair counts as gain 0; t = Σ n; σ² = Σ n·(g − ḡ)² / t with
    ḡ = Σ n·g / t; c = OPTIMISM.

    There are as many arms as prompts, and few pulls of each. If arms that were never pulled came first, selection would
    be random until each was pulled once; so such an arm counts as pulled once with the mean gain ḡ (first-play
    urgency, Gelly & Wang 2006). In iteration 1 no arm was pulled and all ranks are equal. Between prompts that were
    regenerated equally often the gain decides.
    """

    type: Literal["bandit"] = "bandit"
    columns: ClassVar[tuple[str, ...]] = ("chosen_reward", "regenerations", "gain_mean")

    def rank(self, replay: pa.Table) -> Values:
        """Return the negative upper confidence bound, float64, (prompts,); minus infinity where there is no pair.

        Args:
            replay: chosen_reward (float64, null without a pair), regenerations (int32), gain_mean (float64, null where
                a prompt was never regenerated).
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
