"""Read the facts about a run from its ledger, its manifests and a few columns of its replay sets."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from optune_core.data.row_groups import read_groups
from optune_core.data.schemas import REPLAY, only
from optune_core.losses.loss import Loss
from optune_core.losses.registry import LOSSES
from optune_core.replay import trainable
from optune_core.reports.facts import HeldOut, IterationFacts, PairFacts, Record, ResponseCounts, RunFacts
from optune_core.reports.run_state import progress, require_run, state_text
from optune_core.reports.summary import held_out_change, summarise
from optune_core.stages.selection import read_replay
from optune_core.statistics import correlation, half_gains, pair_numbers
from optune_core.storage import ArtifactStore, Ledger, Manifest, Ref
from optune_core.storage.lease import read_lease

_NUMBERS = only(
    REPLAY,
    "chosen_reward",
    "rejected_reward",
    "chosen_token_ids",
    "rejected_token_ids",
    "generated_at",
    "status",
)


def analyse(store: ArtifactStore, run: str) -> RunFacts:
    """Return the facts that a run's page shows, at any time from the run's first start on.

    Raises:
        OptuneError: there is no such run.
        CorruptArtifact: a file of the run is not what was committed.
    """
    ledger = Ledger(store.objects, run)
    require_run(ledger)
    lease = read_lease(store.objects, run)
    config = lease.config if lease and lease.config else ledger.config()
    assert config is not None, "a run has a lease or a record, and both hold a configuration"
    rows = summarise(store, run)
    return RunFacts(
        run=run,
        config=config,
        iterations=[
            _iteration(store, config, row, record) for row, record in zip(rows, ledger.iterations(), strict=False)
        ],
        held_out=_held_out(store, ledger),
        evaluations=ledger.evaluations(),
        reward_model=_reward_model(store, ledger.inputs()),
        state=state_text(progress(ledger)) if lease else "",
        store=store.objects.url,
    )


def pair_facts(replay: pa.Table, loss: Loss, min_reward_gap: float | None) -> PairFacts:
    """Describe the pairs of D_t.

    Args:
        replay: D_t from `pair_numbers`.
        loss: `training.loss`; it may weigh pairs.
        min_reward_gap: `training.min_reward_gap`.
    """
    pairs = trainable(replay)
    chosen, rejected, chosen_tokens, rejected_tokens = (
        pairs[name].to_numpy().astype(np.float64)
        for name in ("chosen_reward", "rejected_reward", "chosen_tokens", "rejected_tokens")
    )
    gaps = chosen - rejected
    trained = gaps if min_reward_gap is None else gaps[gaps >= min_reward_gap]
    weights = loss.pair_weights(trained)
    if weights is None:
        weights = np.zeros(0)
    return PairFacts(chosen, rejected, chosen_tokens, rejected_tokens, made_counts(pairs), weights)


def made_counts(pairs: pa.Table) -> dict[int, int]:
    """Return how many pairs of a replay set were made in which iteration (column generated_at)."""
    return {entry["values"]: entry["counts"] for entry in pc.value_counts(pairs["generated_at"]).to_pylist()}


def correlations(pairs: PairFacts) -> dict[str, float | None]:
    """Return Pearson's r of reward and response length: over the `chosen`, over the `rejected`, over `both`."""
    return {
        "chosen": correlation(pairs.chosen_rewards, pairs.chosen_tokens),
        "rejected": correlation(pairs.rejected_rewards, pairs.rejected_tokens),
        "both": correlation(
            np.concatenate([pairs.chosen_rewards, pairs.rejected_rewards]),
            np.concatenate([pairs.chosen_tokens, pairs.rejected_tokens]),
        ),
    }


def log_ratios(log: list[Record], beta: float | None) -> dict[str, float | None]:
    """Return the mean of `rewards/*`/β over the last quarter of the steps: log π_θ(y|x)/π_ref(y|x), nats a response.

    None where no step has them, as under a loss without a reference.
    """
    last = log[-math.ceil(len(log) / 4) :]
    ratios: dict[str, float | None] = {}
    for side in ("chosen", "rejected"):
        found = [step[f"rewards/{side}"] for step in last if f"rewards/{side}" in step]
        ratios[side] = sum(found) / len(found) / beta if found and beta else None
    return ratios


def count_responses(metrics: list[Record]) -> ResponseCounts | None:
    """Add up the shards of a policy's responses; None without any response.

    Args:
        metrics: those of the shards' manifests.
    """
    total = sum(shard["responses"] for shard in metrics)
    if total == 0:
        return None
    return ResponseCounts(
        responses=total,
        tokens=sum(shard["tokens"] for shard in metrics),
        truncated=sum(shard["truncated"] for shard in metrics),
        distinct=sum(shard["distinct"] for shard in metrics) if all("distinct" in shard for shard in metrics) else None,
    )


def _iteration(store: ArtifactStore, config: Record, row: Record, record: Record) -> IterationFacts:
    t, training, references = record["iteration"], config["training"], record["artifacts"]
    policy, replay_ref = references["policy"], references["replay"]
    manifest, merged, metrics = store.manifest(policy), store.manifest(replay_ref), record["metrics"]["replay"]
    file = store.fetch(replay_ref) / "replay.parquet"
    replay = pa.concat_tables([pair_numbers(group) for group in read_groups([file], _NUMBERS)])
    loss: Loss = LOSSES.parse(training["loss"])
    pairs = pair_facts(replay, loss, training["min_reward_gap"])
    log = _train_log(store, policy)
    return IterationFacts(
        summary=row,
        metrics=metrics,
        selected=record["metrics"]["selection"]["selected"],
        fresh=_responses(store, references["responses"]),
        pairs=pairs,
        correlations=correlations(pairs),
        gains=None if metrics["gain/mean"] is None else _gains(store, merged, replay),
        log=log,
        log_ratios=log_ratios(log, loss.implicit_beta),
        starts_at_reference=t == 0 or training["reference"] == "previous",
        code_version=manifest.code_version,
        committed_at=manifest.committed_at,
    )


def _gains(store: ArtifactStore, merged: Manifest, replay: pa.Table) -> tuple[float, float]:
    previous = read_replay(store, merged.parents["previous"], only(REPLAY, "chosen_reward"))
    return half_gains(pa.concat_tables(previous)["chosen_reward"], replay)


def _train_log(store: ArtifactStore, policy: Ref) -> list[Record]:
    # `fetch` marks a damaged log, so that the next start of the run makes it again; `read` does not.
    lines = (store.fetch(policy, "train_log.jsonl") / "train_log.jsonl").read_text().splitlines()
    return [entry for line in lines if "loss" in (entry := json.loads(line))]


def _held_out(store: ArtifactStore, ledger: Ledger) -> list[HeldOut]:
    held_out: list[HeldOut] = []
    while (record := ledger.held_out(len(held_out))) is not None:
        t = len(held_out)
        change = held_out_change(store, ledger, 0, t)
        known = {reward: row for reward, row in change.items() if row["prompts"]}
        held_out.append(HeldOut(t, known, _responses(store, record["responses"])))
    return held_out


def _responses(store: ArtifactStore, shards: list[Ref]) -> ResponseCounts | None:
    return count_responses([store.manifest(shard).metrics for shard in shards if shard.stage == "responses"])


def _reward_model(store: ArtifactStore, inputs: Record) -> dict[str, Any] | None:
    reward = inputs.get("reward")
    if reward is None or reward.get("model") is None or reward["model"].stage != "reward-model":
        return None
    return store.manifest(reward["model"]).metrics
