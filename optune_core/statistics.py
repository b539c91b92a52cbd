"""Statistics of replay sets and of held-out rewards, and the bootstrap of all intervals. Pure functions."""

from __future__ import annotations

import random
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from optune_core.replay import trainable

RESAMPLES = 2000
"""Resamples that each bootstrap interval of the project is computed from."""

Values = npt.NDArray[Any]


def without_texts(replay: pa.Table) -> pa.Table:
    """Return the columns of D_t (schema REPLAY) that `replay_statistics` reads: numbers, and token ids as counts."""
    return pair_numbers(replay).append_column("sampled_from", replay["sampled_from"])


def pair_numbers(replay: pa.Table) -> pa.Table:
    """Return rewards, response lengths and origin of the pairs, from columns that replay sets of every version have."""
    return pa.table(
        {
            "chosen_reward": replay["chosen_reward"],
            "rejected_reward": replay["rejected_reward"],
            "chosen_tokens": pc.list_value_length(replay["chosen_token_ids"]),
            "rejected_tokens": pc.list_value_length(replay["rejected_token_ids"]),
            "generated_at": replay["generated_at"],
            "regenerated": pc.equal(replay["status"], "regenerated"),
        }
    )


def replay_statistics(previous_reward: pa.ChunkedArray, replay: pa.Table, iteration: int) -> dict[str, Any]:
    """Describe D_t, and what changed from D_{t-1} to it.

    Args:
        previous_reward: chosen_reward of D_{t-1} (float64, null without a pair).
        replay: D_t from `without_texts`, the same prompts in the same order.
        iteration: t.

    Returns:
        `rm/*`: mean rewards of the pairs; `tokens/*`: mean response lengths; `reward_length_correlation`: Pearson's
        r over both responses of all pairs; `age/mean`: iterations since the pair was made; `staleness/mean`:
        iterations by which the policy that sampled a pair was behind at that time; `gain/*`: change of the chosen
        reward of regenerated prompts that had a pair before: its mean, and the share of the total that comes from the
        half of all prompts with the lowest previous chosen reward (Figure 2). None where undefined; the share is also
        None where the total is not positive.
    """
    pairs = trainable(replay)
    chosen, rejected = (pairs[f"{side}_reward"].to_numpy() for side in ("chosen", "rejected"))
    chosen_tokens, rejected_tokens = (pairs[f"{side}_tokens"].to_numpy() for side in ("chosen", "rejected"))
    made = pairs["generated_at"].to_numpy()
    return {
        "pairs": pairs.num_rows,
        "rm/chosen": _mean(chosen),
        "rm/rejected": _mean(rejected),
        "rm/margins": _mean(chosen - rejected),
        "tokens/chosen": _mean(chosen_tokens),
        "tokens/rejected": _mean(rejected_tokens),
        "reward_length_correlation": correlation(
            np.concatenate([chosen, rejected]), np.concatenate([chosen_tokens, rejected_tokens])
        ),
        "age/mean": _mean(iteration - made),
        "staleness/mean": _mean(made - pairs["sampled_from"].to_numpy()),
        **_gain(previous_reward, replay),
    }


def half_gains(previous_reward: pa.ChunkedArray, replay: pa.Table) -> tuple[float, float]:
    """Return the reward gained in the lower and in the upper half of the prompts: the two bars of Figure 2.

    Args:
        previous_reward, replay: the same as for `replay_statistics`.

    Returns:
        Summed change of the chosen reward of regenerated prompts that had a pair before: over the half of all
        prompts with the lowest previous chosen reward, and over the others. The middle one of an odd number of
        prompts belongs to the upper half.
    """
    gains, _, ranked = _gains(previous_reward, replay)
    middle = len(ranked) // 2
    return float(gains[ranked[:middle]].sum()), float(gains[ranked[middle:]].sum())


def _gain(previous_reward: pa.ChunkedArray, replay: pa.Table) -> dict[str, Any]:
    gains, gained, ranked = _gains(previous_reward, replay)
    total = gains.sum()
    return {
        "gain/mean": _mean(gains[gained]),
        "gain/bottom_half_share": float(gains[ranked[: len(ranked) // 2]].sum() / total) if total > 0 else None,
    }


def _gains(previous_reward: pa.ChunkedArray, replay: pa.Table) -> tuple[Values, Values, Values]:
    """Return each prompt's gain (0 if none), whether it has one, and the rows with a previous pair, lowest first."""
    before, after = previous_reward.to_numpy(), replay["chosen_reward"].to_numpy()
    paired = np.flatnonzero(~np.isnan(before))
    ranked = paired[np.argsort(before[paired], kind="stable")]
    gained = ~np.isnan(before) & replay["regenerated"].to_numpy()
    return np.where(gained, after - before, 0.0), gained, ranked


def correlation(x: Values, y: Values) -> float | None:
    """Return Pearson's r, or None where one side does not vary."""
    # A constant side can have a positive variance, as its mean is rounded; its range is exactly 0.
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    x, y = x - x.mean(), y - y.mean()
    variances = (x * x).sum() * (y * y).sum()
    return float((x * y).sum() / variances**0.5) if variances > 0 else None


def speedup_bound(share: float, rho: float) -> float:
    """Return 1 / (1 - g·(1 - ρ)), the most that regenerating ρ of the prompts can speed up an iteration.

    Args:
        share: g, the share of generation and scoring in the time of an iteration at ρ = 1.
        rho: ρ.
    """
    return 1.0 / (1.0 - share * (1.0 - rho))


def reward_per_prompt(scores: pa.Table) -> dict[str, float]:
    """Return the mean reward of each prompt's scored responses (schema SCORES); prompts without any are left out."""
    rewards: dict[str, list[float]] = {}
    for prompt_id, reward in zip(scores["prompt_id"].to_pylist(), scores["reward"].to_pylist(), strict=True):
        if reward is not None:
            rewards.setdefault(prompt_id, []).append(reward)
    return {prompt_id: fmean(values) for prompt_id, values in rewards.items()}


def paired_difference(before: dict[str, float], after: dict[str, float]) -> dict[str, Any]:
    """Return the mean change over the prompts that have both, with a 95 % bootstrap interval over prompts.

    Returns:
        `before`, `after`, `difference`, `low`, `high`, and `prompts`, the number of prompts.
    """
    both = sorted(before.keys() & after.keys())
    if not both:
        return {"before": None, "after": None, "difference": None, "low": None, "high": None, "prompts": 0}
    differences = [after[prompt_id] - before[prompt_id] for prompt_id in both]
    generator = random.Random(0)
    means = [fmean(generator.choices(differences, k=len(differences))) for _ in range(RESAMPLES)]
    low, high = central_interval(means)
    return {
        "before": fmean(before[prompt_id] for prompt_id in both),
        "after": fmean(after[prompt_id] for prompt_id in both),
        "difference": fmean(differences),
        "low": low,
        "high": high,
        "prompts": len(both),
    }


def resampled_counts(total: int, shares: Values, seed: int = 0) -> Values:
    """Return how often each kind is drawn in each resample of a bootstrap, shape (RESAMPLES, kinds).

    Drawing items with replacement makes the counts of their kinds multinomial, so the counts are drawn directly.

    Args:
        total: items of a resample.
        shares: share of each kind among the items, shape (kinds,).
    """
    return np.random.default_rng(seed).multinomial(total, shares, RESAMPLES)


def central_interval(resampled: Sequence[float]) -> tuple[float, float]:
    """Return the interval that holds the central 95 % of a statistic's resampled values."""
    ordered = sorted(resampled)
    return ordered[int(0.025 * len(ordered))], ordered[int(0.975 * len(ordered)) - 1]


def _mean(values: Values) -> float | None:
    return float(values.mean()) if len(values) else None
