"""The table of a run, one row an iteration, computed from the ledger."""

from __future__ import annotations

import math

from optune_core.data.schemas import SCORES
from optune_core.data.shards import SCORES_FILE, read_shards
from optune_core.reports.facts import Record
from optune_core.statistics import paired_difference, reward_per_prompt, speedup_bound
from optune_core.storage import ArtifactStore, Ledger, Ref


def summarise(store: ArtifactStore, run: str) -> list[Record]:
    """Return one row a committed iteration, with held-out rewards before (π_t) and after it (π_{t+1}) where known."""
    ledger = Ledger(store.objects, run)
    return [_row(store, ledger, record) for record in ledger.iterations()]


def held_out_change(store: ArtifactStore, ledger: Ledger, first: int, last: int) -> Record:
    """Return `paired_difference` of the held-out rewards `proxy` and `gold` from π_first to π_last, where known."""
    before, after = ledger.held_out(first), ledger.held_out(last)
    change: Record = {}
    for reward in ("proxy", "gold"):
        if before is None or after is None or not before[reward] or not after[reward]:
            continue
        change[reward] = paired_difference(_rewards(store, before[reward]), _rewards(store, after[reward]))
    return change


def held_out_difference(store: ArtifactStore, one: Ledger, other: Ledger) -> Record:
    """Compare the held-out rewards of two runs' last policies on the prompts that both have.

    Returns:
        `proxy` and `gold` → `paired_difference` from `one` to `other`, for the rewards that are the same in both.
    """
    records = [ledger.held_out(len(ledger.iterations())) for ledger in (one, other)]
    inputs = [ledger.inputs() for ledger in (one, other)]
    difference: Record = {}
    for name, key in (("proxy", "reward"), ("gold", "gold")):
        before, after = (record and record[name] for record in records)
        if before and after and _identity(inputs[0][key]) == _identity(inputs[1][key]):
            difference[name] = paired_difference(_rewards(store, before), _rewards(store, after))
    return difference


def _identity(reward: Record) -> tuple[object, ...]:
    """Return what identifies a reward, as `ReadyReward` records it: how it scores, and the content of its model."""
    return reward["scoring"], reward["model"] and reward["model"].digest


def savings(record: Record) -> Record:
    """Return what selective regeneration saved in an iteration, from the measured seconds of its stages.

    `speedup` compares with regenerating every prompt at the same seconds a prompt. `bound` is the speed-up if
    orchestration ("rank and merge") took no time: 1 / (1 - g·(1 - ρ)), where g is the share of generation and scoring
    at ρ = 1 in the time that is not orchestration.
    """
    seconds, metrics = record["timing"], record["metrics"]
    selected, prompts = metrics["selection"]["selected"], metrics["selection"]["prompts"]
    if selected == 0:
        return {"speedup": None, "bound": None, "seconds_saved": None}
    sampled = seconds["generate"] + seconds["score"]
    everywhere = sampled * prompts / selected
    rest = seconds["start engine"] + seconds["train"]
    unsampled = rest + seconds["rank and merge"]
    return {
        "speedup": (everywhere + unsampled) / (sampled + unsampled),
        "bound": speedup_bound(everywhere / (everywhere + rest), selected / prompts),
        "seconds_saved": everywhere - sampled,
    }


def _row(store: ArtifactStore, ledger: Ledger, record: Record) -> Record:
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


def _rewards(store: ArtifactStore, shards: list[Ref]) -> dict[str, float]:
    return reward_per_prompt(read_shards(store, shards, SCORES_FILE, SCORES))
