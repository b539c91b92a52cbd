"""History of each prompt: the rewards of its responses so far, and the gains of regenerating it.

The replay set carries five numbers per prompt, so that a selector does not have to read earlier iterations. Count,
mean and variance of one iteration's rewards are merged with those of all earlier ones (Chan et al. 1979).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from optune_core.pairs import Rows

REWARD_MOMENTS = ("responses_scored", "reward_mean", "reward_variance")
HISTORY = (*REWARD_MOMENTS, "regenerations", "gain_mean")
"""Columns of REPLAY that hold the history; their types and meanings are in `data.schemas`."""
NOTHING_YET: dict[str, int | None] = dict.fromkeys(HISTORY) | {"responses_scored": 0, "regenerations": 0}
"""Values of these columns before iteration 0."""


def reward_moments(block: pa.Table, first: Rows) -> dict[str, pa.Array]:
    """Compute count, mean and variance of the rewards of each prompt's responses in a block.

    Args:
        block: column reward, float64, null where a response could not be scored.
        first: int64, (prompts,): row of each prompt's first response.

    Returns:
        Columns REWARD_MOMENTS, one row per prompt.
    """
    reward = block["reward"].to_numpy()
    scored = ~np.isnan(reward)
    count = np.add.reduceat(scored, first, dtype=np.int32)
    mean = np.add.reduceat(np.where(scored, reward, 0.0), first) / np.maximum(count, 1)
    deviation = reward - np.repeat(mean, np.diff(np.append(first, block.num_rows)))
    variance = np.add.reduceat(np.where(scored, deviation**2, 0.0), first) / np.maximum(count, 1)
    return _moments(count, mean, variance)


def advance(group: pa.Table, fresh: pa.Table, rows: Rows) -> dict[str, pa.Array]:
    """Compute the columns HISTORY of D_t.

    A regeneration is counted where the prompt had a pair before, because only then it has a gain: the difference of the
    chosen rewards, or 0 where no new pair resulted and the old one was kept.

    Args:
        group: rows of D_{t-1}; columns HISTORY and chosen_reward.
        fresh: results of iteration t for some prompts of `group`; columns REWARD_MOMENTS, chosen_reward and reason.
        rows: int64, (rows of `fresh`,): row of each of these prompts in `group`.

    Returns:
        Columns HISTORY, one row per row of `group`.
    """
    count, mean, variance, regenerations, gain_mean = (group[name].to_numpy().copy() for name in HISTORY)
    n, m, v = count[rows], np.nan_to_num(mean[rows]), np.nan_to_num(variance[rows])
    fresh_n, fresh_m, fresh_v = (np.nan_to_num(fresh[name].to_numpy()) for name in REWARD_MOMENTS)
    both, difference = np.maximum(n + fresh_n, 1), fresh_m - m
    count[rows] = n + fresh_n
    mean[rows] = m + difference * fresh_n / both
    variance[rows] = (n * v + fresh_n * fresh_v + difference**2 * n * fresh_n / both) / both

    before = group["chosen_reward"].to_numpy()[rows]
    had_pair = ~np.isnan(before)
    after = np.where(pc.is_null(fresh["reason"]).to_numpy(), fresh["chosen_reward"].to_numpy(), before)
    regenerated, gain = rows[had_pair], (after - before)[had_pair]
    regenerations[regenerated] += 1
    old_mean = np.nan_to_num(gain_mean[regenerated])
    gain_mean[regenerated] = old_mean + (gain - old_mean) / regenerations[regenerated]
    return _moments(count, mean, variance) | {
        "regenerations": pa.array(regenerations),
        "gain_mean": pa.array(gain_mean, mask=regenerations == 0),
    }


def _moments(count: Any, mean: Any, variance: Any) -> dict[str, pa.Array]:
    none = count == 0
    columns = (pa.array(count), pa.array(mean, mask=none), pa.array(variance, mask=none))
    return dict(zip(REWARD_MOMENTS, columns, strict=True))
