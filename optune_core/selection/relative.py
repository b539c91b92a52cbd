"""`relative`, beyond the paper: the chosen reward against the prompt's own history."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa

from optune_core.selection.selector import RankingSelector, Values, numbers, unpaired_first

PRIOR_DEGREES = 4
"""d₀: the weight of the spread that all prompts share beside a prompt's own, in degrees of freedom. As much as five
responses: more than the two of iteration 0 (d = 1), about what a prompt regenerated three times has (d = 5). Ours."""


class Relative(RankingSelector):
    """Regenerate the prompts whose chosen reward is lowest against all that their responses have scored so far.

        z = (r_w − m) / s̃,   s̃² = (d·s² + d₀·s₀²) / (d + d₀),   d = n − 1

    n, m: number and mean of the prompt's scored responses, of all iterations; d·s²: their squared deviations from m,
    summed; s₀² = Σ d·s² / Σ d over all prompts; d₀ = PRIOR_DEGREES. It is the moderated statistic of Smyth (2004):
    two responses say nothing about their spread (standardised by themselves they differ by one unit in every prompt),
    so the spread is drawn towards that of all prompts, the more the fewer responses there are.

    Bradley-Terry rewards (Eq. 1) are determined up to a constant a prompt: z does not change when one is added to all
    rewards of a prompt, nor when all rewards are scaled. With K = 2 it ranks iteration 0's pairs by their margin;
    from then on a prompt comes early whose stored pair is no better than its earlier responses.
    """

    type: Literal["relative"] = "relative"
    columns: ClassVar[tuple[str, ...]] = ("chosen_reward", "responses_scored", "reward_mean", "reward_variance")

    def rank(self, replay: pa.Table) -> Values:
        """Return z.

        Args:
            replay: chosen_reward, reward_mean, reward_variance (float64, null where there is none), responses_scored.
        """
        chosen, count = numbers(replay, "chosen_reward"), numbers(replay, "responses_scored")
        degrees = np.maximum(count - 1, 0)
        squares = np.nan_to_num(count * numbers(replay, "reward_variance"))
        total = degrees.sum()
        # fsum is exact, so the sum does not depend on the order of the file.
        shared = math.fsum(squares) / total if total else 0.0
        spread = np.sqrt((squares + PRIOR_DEGREES * shared) / (degrees + PRIOR_DEGREES))
        above = chosen - numbers(replay, "reward_mean")
        # Where rewards have no spread at all, every chosen reward equals its mean.
        ranks = np.divide(above, spread, out=np.zeros_like(above), where=spread > 0)
        return unpaired_first(ranks, chosen)
