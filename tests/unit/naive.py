"""Pairing, merge and statistics one row at a time: the plain reference for the columnar code."""

from __future__ import annotations

from statistics import fmean, pvariance
from typing import Any

Row = dict[str, Any]


def best_against_worst(candidates: list[Row]) -> tuple[Row, Row] | str:
    """Return (chosen, rejected), or the reason for no pair."""
    usable = sorted((c for c in candidates if c["outcome"] == "ok"), key=lambda c: c["sample"])
    if len(usable) < 2:
        return "one_left:" + ",".join(sorted({c["outcome"] for c in candidates if c["outcome"] != "ok"}))
    if all(c["response_token_ids"] == usable[0]["response_token_ids"] for c in usable):
        return "identical"
    rewards = [c["reward"] for c in usable]
    if max(rewards) == min(rewards):
        return "tied"
    return max(usable, key=lambda c: c["reward"]), min(usable, key=lambda c: c["reward"])


def as_given(candidates: list[Row]) -> tuple[Row, Row] | str:
    failed = sorted({c["outcome"] for c in candidates} - {"ok"})
    return "unscored:" + ",".join(failed) if failed else (candidates[0], candidates[1])


def merge(previous: list[Row], candidates: list[Row], rule: Any, iteration: int, sampled_from: int) -> list[Row]:
    """Return D_t from D_{t-1} and the scored responses, without the history."""
    groups: dict[str, list[Row]] = {}
    for candidate in candidates:
        groups.setdefault(candidate["prompt_id"], []).append(candidate)
    merged = []
    for old in previous:
        row = dict(old)
        paired = old["generated_at"] is not None
        group = groups.pop(old["prompt_id"], None)
        found = None if group is None else rule(group)
        if found is None:
            row |= {"status": "reused", "reason": None} if paired else {"status": "unpaired"}
        elif isinstance(found, str):
            row |= {"status": "kept" if paired else "unpaired", "reason": found}
        else:
            row |= {"status": "regenerated", "reason": None, "generated_at": iteration, "sampled_from": sampled_from}
            for side, response in zip(("chosen", "rejected"), found, strict=True):
                row[side] = response["response"]
                for name in ("reward", "policy_logps"):
                    row[f"{side}_{name}"] = response[name]
                row[f"{side}_token_ids"] = response["response_token_ids"]
        merged.append(row)
    assert not groups
    return merged


def history(prompt_id: str, rounds: list[list[Row]], rule: Any) -> Row:
    """Return the replay set's history of a prompt from its scored responses of all iterations."""
    rewards: list[float] = []
    gains: list[float] = []
    chosen = None
    for candidates in rounds:
        group = [c for c in candidates if c["prompt_id"] == prompt_id]
        if not group:
            continue
        rewards += [c["reward"] for c in group if c["outcome"] == "ok"]
        found = rule(group)
        before, chosen = chosen, chosen if isinstance(found, str) else found[0]["reward"]
        if before is not None:
            gains.append(chosen - before)
    return {
        "responses_scored": len(rewards),
        "reward_mean": mean(rewards),
        "reward_variance": pvariance(rewards) if rewards else None,
        "regenerations": len(gains),
        "gain_mean": mean(gains),
    }


def statistics(previous: list[Row], replay: list[Row], iteration: int) -> Row:
    pairs = [row for row in replay if row["generated_at"] is not None]
    chosen, rejected = ([row[f"{side}_reward"] for row in pairs] for side in ("chosen", "rejected"))
    lengths = [[len(row[f"{side}_token_ids"]) for row in pairs] for side in ("chosen", "rejected")]
    ranked = sorted((row["chosen_reward"], at) for at, row in enumerate(previous) if row["chosen_reward"] is not None)
    bottom = {at for _, at in ranked[: len(ranked) // 2]}
    gains = {
        at: row["chosen_reward"] - previous[at]["chosen_reward"]
        for at, row in enumerate(replay)
        if row["status"] == "regenerated" and previous[at]["chosen_reward"] is not None
    }
    total = sum(gains.values())
    return {
        "pairs": len(pairs),
        "rm/chosen": mean(chosen),
        "rm/rejected": mean(rejected),
        "rm/margins": mean([c - r for c, r in zip(chosen, rejected, strict=True)]),
        "tokens/chosen": mean(lengths[0]),
        "tokens/rejected": mean(lengths[1]),
        "reward_length_correlation": correlation([*chosen, *rejected], [*lengths[0], *lengths[1]]),
        "age/mean": mean([iteration - row["generated_at"] for row in pairs]),
        "staleness/mean": mean([row["generated_at"] - row["sampled_from"] for row in pairs]),
        "gain/mean": mean(list(gains.values())),
        "gain/bottom_half_share": sum(gain for at, gain in gains.items() if at in bottom) / total
        if total > 0
        else None,
    }


def mean(values: list[float]) -> float | None:
    return fmean(values) if values else None


def correlation(x: list[float], y: list[float]) -> float | None:
    if len(x) < 2:
        return None
    mean_x, mean_y = fmean(x), fmean(y)
    var_x, var_y = sum((a - mean_x) ** 2 for a in x), sum((b - mean_y) ** 2 for b in y)
    if var_x == 0 or var_y == 0:
        return None
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / (var_x * var_y) ** 0.5
