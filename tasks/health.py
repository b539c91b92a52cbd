"""Check of an iteration's fresh data before it is trained on."""

from __future__ import annotations

from typing import Any

from optune_core.health import Freshness, check_health
from optune_core.storage import Ledger, Ref
from tasks.support.context import RunContext
from tasks.support.stage import open_store, stage_task


@stage_task("check health")
def check_fresh_data(context: RunContext, iteration: int, selection: Ref, responses: list[Ref], replay: Ref) -> None:
    """Stop the run before it trains on degenerate data.

    Raises:
        UnhealthyData: the fresh data passes a limit of the section `health`.
    """
    store = open_store(context.store)
    fresh = [store.manifest(ref).metrics for ref in responses if ref.stage == "responses"]
    first = Ledger(store.objects, context.run).iteration(0)
    shards = first["artifacts"]["responses"] if first else []
    before = [store.manifest(ref).metrics for ref in shards if ref.stage == "responses"] or fresh
    merged = store.manifest(replay).metrics
    check_health(
        Freshness(
            prompts=store.manifest(selection).metrics["selected"],
            pairs=merged["status"].get("regenerated", 0),
            reasons=merged["reasons"],
            responses=_total(fresh, "responses"),
            distinct=_total(fresh, "distinct"),
            truncated=_total(fresh, "truncated"),
            mean_tokens=_total(fresh, "tokens") / max(1, _total(fresh, "responses")),
            first_mean_tokens=_total(before, "tokens") / max(1, _total(before, "responses")),
        ),
        context.config.health,
        iteration,
    )


def _total(metrics: list[dict[str, Any]], name: str) -> int:
    return sum(shard[name] for shard in metrics)
