"""A run's table: one row an iteration, computed from the ledger alone."""

from __future__ import annotations

import math
from typing import Any

from optune_core.data.schemas import SCORES
from optune_core.data.shards import SCORES_FILE, read_shards
from optune_core.statistics import paired_difference, reward_per_prompt, speedup_bound
from optune_core.storage import ArtifactStore, Ledger, Ref

Row = dict[str, Any]


def summarise(store: ArtifactStore, run: str) -> list[Row]:
    """One row a committed iteration, with held-out rewards before (π_t) and after (π_{t+1}) where they are known."""
    ledger = Ledger(store.objects, run)
    return [_row(store, ledger, record) for record in ledger.iterations()]


def held_out_change(store: ArtifactStore, ledger: Ledger, first: int, last: int) -> Row:
    """Change of the held-out rewards from π_first to π_last: `proxy` and `gold`, each from `paired_difference`."""
    before, after = ledger.held_out(first), ledger.held_out(last)
    change: Row = {}
    for reward in ("proxy", "gold"):
        if before is None or after is None or not before[reward] or not after[reward]:
            continue
        change[reward] = paired_difference(_rewards(store, before[reward]), _rewards(store, after[reward]))
    return change


def held_out_difference(store: ArtifactStore, one: Ledger, other: Ledger) -> Row:
    """Held-out rewards of the last policy of run `other` minus those of run `one`, on the prompts that both have.

    Returns:
        As `held_out_change`, for the rewards that are the same in both runs.
    """
    records = [ledger.held_out(len(ledger.iterations())) for ledger in (one, other)]
    inputs = [ledger.inputs() for ledger in (one, other)]
    difference: Row = {}
    for name, key in (("proxy", "reward"), ("gold", "gold")):
        before, after = (record and record[name] for record in records)
        if before and after and _identity(inputs[0][key]) == _identity(inputs[1][key]):
            difference[name] = paired_difference(_rewards(store, before), _rewards(store, after))
    return difference


def _identity(reward: Row) -> tuple[object, ...]:
    """What tells a reward from another: its model, or its function with the digest of its source."""
    return reward["type"], reward["model"] and reward["model"]["digest"], reward["function"], reward["identity"]


def savings(record: Row) -> Row:
    """What selective regeneration saved in an iteration, in the measured seconds of its stages.

    `speedup` compares with regenerating every prompt at the same seconds a prompt. `bound` is what it would be if
    orchestration ("rank and merge") cost nothing: 1 / (1 - g·(1 - ρ)), g being the share of generation and scoring at
    ρ = 1 in the time that is not orchestration.
    """
    seconds, metrics = record["timing"], record["metrics"]
    selected, prompts = metrics["selection"]["selected"], metrics["selection"]["prompts"]
    if selected == 0:
        return {"speedup": None, "bound": None, "seconds_saved": None}
    sampled = seconds["generate"] + seconds["score"]
    everywhere = sampled * prompts / selected
    rest = seconds["start engine"] + seconds["train"]
    whole = rest + seconds["rank and merge"]
    return {
        "speedup": (everywhere + whole) / (sampled + whole),
        "bound": speedup_bound(everywhere / (everywhere + rest), selected / prompts),
        "seconds_saved": everywhere - sampled,
    }


def _row(store: ArtifactStore, ledger: Ledger, record: Row) -> Row:
    metrics, t = record["metrics"], record["iteration"]
    status = metrics["replay"]["status"]
    first = metrics["policy"]["first"]
    weight = first.get("weights/mean", metrics["policy"].get("weights/mean"))
    return {
        "iteration": t,
        "prompts": metrics["replay"]["prompts"],
        "regenerated": status.get("regenerated", 0),
        "reused": status.get("reused", 0),
        "kept": status.get("kept", 0),
        "unpaired": status.get("unpaired", 0),
        "first_loss": first.get("loss"),
        "first_loss_expected": weight * math.log(2) if first and weight is not None else None,
        "seconds": record["timing"],
        **savings(record),
        **held_out_change(store, ledger, t, t + 1),
    }


def _rewards(store: ArtifactStore, shards: list[dict[str, str]]) -> dict[str, float]:
    references = [Ref.from_json(shard) for shard in shards]
    return reward_per_prompt(read_shards(store, references, SCORES_FILE, SCORES))
