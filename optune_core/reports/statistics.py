"""Numbers about a replay set and about held-out rewards. Pure functions of tables."""

from __future__ import annotations

import random
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import pyarrow as pa

from optune_core.replay import trainable

_RESAMPLES = 2000


def replay_statistics(previous: pa.Table, replay: pa.Table, iteration: int) -> dict[str, Any]:
    """What changed from D_{t-1} to D_t.

    Args:
        previous, replay: schema REPLAY, the same prompts in the same order.
        iteration: t.

    Returns:
        `rm/*`: mean rewards of the pairs; `tokens/*`: mean response lengths; `reward_length_correlation`: Pearson,
        over both responses of all pairs; `age/mean`: iterations since the pair was sampled; `gain/*`: change of the
        chosen reward of regenerated prompts that had a pair before, its mean, and the share of the total that comes
        from the half of all prompts with the lowest previous chosen reward (Figure 2). None where undefined, and the
        share where the total is not positive.
    """
    pairs = trainable(replay)
    chosen, rejected = pairs["chosen_reward"].to_pylist(), pairs["rejected_reward"].to_pylist()
    chosen_tokens, rejected_tokens = (
        [len(ids) for ids in pairs[f"{side}_token_ids"].to_pylist()] for side in ("chosen", "rejected")
    )
    return {
        "pairs": pairs.num_rows,
        "rm/chosen": _mean(chosen),
        "rm/rejected": _mean(rejected),
        "rm/margins": _mean([c - r for c, r in zip(chosen, rejected, strict=True)]),
        "tokens/chosen": _mean(chosen_tokens),
        "tokens/rejected": _mean(rejected_tokens),
        "reward_length_correlation": correlation([*chosen, *rejected], [*chosen_tokens, *rejected_tokens]),
        "age/mean": _mean([iteration - made for made in pairs["generated_at"].to_pylist()]),
        **_gain(previous, replay),
    }


def _gain(previous: pa.Table, replay: pa.Table) -> dict[str, Any]:
    before, after = previous["chosen_reward"].to_pylist(), replay["chosen_reward"].to_pylist()
    ranked = sorted((reward, row) for row, reward in enumerate(before) if reward is not None)
    bottom = {row for _, row in ranked[: len(ranked) // 2]}
    gains = {
        row: after[row] - before[row]
        for row, status in enumerate(replay["status"].to_pylist())
        if status == "regenerated" and before[row] is not None
    }
    total = sum(gains.values())
    return {
        "gain/mean": _mean(list(gains.values())),
        "gain/bottom_half_share": sum(gain for row, gain in gains.items() if row in bottom) / total
        if total > 0
        else None,
    }


def correlation(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Pearson's r, or None where one side does not vary."""
    if len(x) < 2:
        return None
    mean_x, mean_y = fmean(x), fmean(y)
    var_x, var_y = sum((a - mean_x) ** 2 for a in x), sum((b - mean_y) ** 2 for b in y)
    if var_x == 0 or var_y == 0:
        return None
    return float(sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / (var_x * var_y) ** 0.5)


def speedup_bound(share: float, rho: float) -> float:
    """1 / (1 - g·(1 - ρ)), the most that regenerating ρ of the prompts can speed up an iteration.

    Args:
        share: g, the share of generation and scoring in the time of an iteration at ρ = 1.
        rho: ρ.
    """
    return 1.0 / (1.0 - share * (1.0 - rho))


def reward_per_prompt(scores: pa.Table) -> dict[str, float]:
    """Mean reward of each prompt's scored responses (schema SCORES); prompts without any are left out."""
    rewards: dict[str, list[float]] = {}
    for prompt_id, reward in zip(scores["prompt_id"].to_pylist(), scores["reward"].to_pylist(), strict=True):
        if reward is not None:
            rewards.setdefault(prompt_id, []).append(reward)
    return {prompt_id: fmean(values) for prompt_id, values in rewards.items()}


def paired_difference(before: dict[str, float], after: dict[str, float]) -> dict[str, Any]:
    """Mean change over the prompts that have both, with a 95 % bootstrap interval over prompts.

    Returns:
        `before`, `after`, `difference`, `low`, `high`, and `prompts`, the number of prompts.
    """
    both = sorted(before.keys() & after.keys())
    if not both:
        return {"before": None, "after": None, "difference": None, "low": None, "high": None, "prompts": 0}
    differences = [after[prompt_id] - before[prompt_id] for prompt_id in both]
    generator = random.Random(0)
    means = sorted(fmean(generator.choices(differences, k=len(differences))) for _ in range(_RESAMPLES))
    return {
        "before": fmean(before[prompt_id] for prompt_id in both),
        "after": fmean(after[prompt_id] for prompt_id in both),
        "difference": fmean(differences),
        "low": means[int(0.025 * _RESAMPLES)],
        "high": means[int(0.975 * _RESAMPLES) - 1],
        "prompts": len(both),
    }


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
