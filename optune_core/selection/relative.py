"""`relative`, beyond the paper: chosen reward lowest against the history of the prompt first."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa

from optune_core.selection.selector import RankingSelector, Values, numbers, unpaired_first

PRIOR_DEGREES = 4
"""d₀: the weight of the spread over all prompts against a prompt's own spread, in degrees of freedom. It is that of
five responses: more than a prompt has after iteration 0 (two responses, d = 1), about as much as after two
regenerations (six responses, d = 5). The value is our choice."""


class Relative(RankingSelector):
    """Regenerate the prompts whose chosen reward is lowest against the rewards of all of their responses so far.

        z = (r_w − m) / s̃,   s̃² = (d·s² + d₀·s₀²) / (d + d₀),   d = n − 1

    r_w: the chosen reward; n, m: number and mean reward of the prompt's scored responses in all iterations; d·s²: the
    sum of their squared deviations from m; s₀² = Σ d·s² / Σ d over all prompts; d₀ = PRIOR_DEGREES. This is the
    moderated statistic of Smyth (2004): a spread estimated from two responses is useless (standardised by it, any two
    responses differ by the same amount), so it is shrunk towards the spread over all prompts, more strongly for fewer
    responses.

    Bradley-Terry rewards (Eq. 1) are determined up to a constant for each prompt: z does not change when a constant is
    added to all rewards of a prompt, nor when all rewards are scaled. With K = 2 the pairs of iteration 0 are ranked by
    their margin; later, prompts whose stored pair is no better than their earlier responses come first.
    """

    type: Literal["relative"] = "relative"
    columns: ClassVar[tuple[str, ...]] = ("chosen_reward", "responses_scored", "reward_mean", "reward_variance")

    def rank(self, replay: pa.Table) -> Values:
        """Return z, float64, (prompts,); minus infinity where there is no pair.

        Args:
            replay: chosen_reward, reward_mean, reward_variance (float64, null where there is none), responses_scored
                (int32).
        """
        chosen, count = numbers(replay, "chosen_reward"), numbers(replay, "responses_scored")
        degrees = np.maximum(count - 1, 0)
        squares = np.nan_to_num(count * numbers(replay, "reward_variance"))
        total = degrees.sum()
        # fsum is exact, so the sum does not depend on the order of the file.
        shared = math.fsum(squares) / total if total else 0.0
        spread = np.sqrt((squares + PRIOR_DEGREES * shared) / (degrees + PRIOR_DEGREES))
        above = chosen - numbers(replay, "reward_mean")
        # Where rewards have no spread, every chosen reward equals its mean, so z is 0.
        ranks = np.divide(above, spread, out=np.zeros_like(above), where=spread > 0)
        return unpaired_first(ranks, chosen)
