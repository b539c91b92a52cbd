"""What a prompt has been through: what its responses scored so far, and what regenerating it brought.

Five numbers a prompt that the replay set carries along, so that a selector need not read earlier iterations. Count,
mean and variance of one iteration's responses are joined to those of all before (Chan et al. 1979).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from optune_core.pairs import Rows

REWARD_MOMENTS = ("responses_scored", "reward_mean", "reward_variance")
HISTORY = (*REWARD_MOMENTS, "regenerations", "gain_mean")
"""Columns of REPLAY."""
NOTHING_YET: dict[str, int | None] = dict.fromkeys(HISTORY) | {"responses_scored": 0, "regenerations": 0}
"""Before iteration 0."""


def reward_moments(block: pa.Table, first: Rows) -> dict[str, pa.Array]:
    """Columns REWARD_MOMENTS of each prompt of a block, of these responses alone.

    Args:
        block: reward, float64, null where a response could not be scored.
        first: row of each prompt's first response.
    """
    reward = block["reward"].to_numpy()
    scored = ~np.isnan(reward)
    count = np.add.reduceat(scored, first, dtype=np.int32)
    mean = np.add.reduceat(np.where(scored, reward, 0.0), first) / np.maximum(count, 1)
    deviation = reward - np.repeat(mean, np.diff(np.append(first, block.num_rows)))
    variance = np.add.reduceat(np.where(scored, deviation**2, 0.0), first) / np.maximum(count, 1)
    return _moments(count, mean, variance)


def advance(group: pa.Table, fresh: pa.Table, rows: Rows) -> dict[str, pa.Array]:
    """Columns HISTORY of D_t.

    A regeneration counts where the prompt had a pair before: then there is a gain, if only 0 because it was in vain.

    Args:
        group: some of D_{t-1}; HISTORY, chosen_reward.
        fresh: what iteration t made of some of its prompts; REWARD_MOMENTS, chosen_reward, reason.
        rows: the rows of `group` that the rows of `fresh` stand for.
    """
    count, mean, variance, regenerations, gain_mean = (group[name].to_numpy().copy() for name in HISTORY)
    n, m, v = count[rows], np.nan_to_num(mean[rows]), np.nan_to_num(variance[rows])
    fresh_n, fresh_m, fresh_v = (np.nan_to_num(fresh[name].to_numpy()) for name in REWARD_MOMENTS)
    both, apart = np.maximum(n + fresh_n, 1), fresh_m - m
    count[rows] = n + fresh_n
    mean[rows] = m + apart * fresh_n / both
    variance[rows] = (n * v + fresh_n * fresh_v + apart**2 * n * fresh_n / both) / both

    before = group["chosen_reward"].to_numpy()[rows]
    had_pair = ~np.isnan(before)
    after = np.where(pc.is_null(fresh["reason"]).to_numpy(), fresh["chosen_reward"].to_numpy(), before)
    pulled, gain = rows[had_pair], (after - before)[had_pair]
    regenerations[pulled] += 1
    standing = np.nan_to_num(gain_mean[pulled])
    gain_mean[pulled] = standing + (gain - standing) / regenerations[pulled]
    return _moments(count, mean, variance) | {
        "regenerations": pa.array(regenerations),
        "gain_mean": pa.array(gain_mean, mask=regenerations == 0),
    }


def _moments(count: Any, mean: Any, variance: Any) -> dict[str, pa.Array]:
    none = count == 0
    columns = (pa.array(count), pa.array(mean, mask=none), pa.array(variance, mask=none))
    return dict(zip(REWARD_MOMENTS, columns, strict=True))
