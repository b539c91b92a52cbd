"""Records that a run commits to its ledger, and artifacts that it shows in Prefect's UI."""

from __future__ import annotations

from typing import Any

from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact

from optune_core.data.schemas import SCORES
from optune_core.data.shards import SCORES_FILE, read_shards
from optune_core.errors import OptuneError
from optune_core.reports.page import report
from optune_core.reports.render import iteration_markdown, reward_model_markdown, run_markdown
from optune_core.reports.summary import held_out_change, summarise
from optune_core.reports.timing import stage_timing
from optune_core.statistics import reward_per_prompt
from optune_core.storage import ArtifactStore, Ledger, Ref
from tasks.support.context import RunContext
from tasks.support.stage import open_store, stage_task
from tasks.support.ui import only_shown


@stage_task("open run")
def start_run(context: RunContext) -> None:
    """Create the run's record, or refuse to continue it with another configuration or other inputs."""
    inputs = {
        "policy": context.policy,
        "prompts": context.prompts,
        "reward": context.reward.model_dump(mode="json") if context.reward else None,
        "gold": context.gold.model_dump(mode="json") if context.gold else None,
    }
    _ledger(context).open(context.config, inputs)


def reached_iterations(context: RunContext) -> list[tuple[Ref, Ref]]:
    """(D_t, π_{t+1}) of the iterations that are committed."""
    return [(record["artifacts"]["replay"], record["artifacts"]["policy"]) for record in _ledger(context).iterations()]


@stage_task("commit iteration")
def commit_iteration(
    context: RunContext,
    iteration: int,
    selection: Ref,
    responses: list[Ref],
    scores: list[Ref],
    replay: Ref,
    policy: Ref,
    trained: Ref,
) -> None:
    """Commit the iteration to the ledger, and show it."""
    store = open_store(context.store)
    names = {"selection": selection, "replay": replay, "policy": trained}
    manifests = {name: store.manifest(ref) for name, ref in names.items()}
    generated = [store.manifest(ref) for ref in responses if ref.stage == "responses"]
    scored = [store.manifest(ref) for ref in scores]
    record: dict[str, Any] = {
        "iteration": iteration,
        "artifacts": names
        | {
            "responses": responses,
            "scores": scores,
            "started_from": policy,
        },
        "metrics": {name: manifest.metrics for name, manifest in manifests.items()}
        | {"generated_tokens": sum(manifest.metrics["tokens"] for manifest in generated)},
        "timing": stage_timing(generated, scored, **manifests),
    }
    committed = _ledger(context).commit_iteration(iteration, record)
    _check_same(context.run, iteration, committed["artifacts"], record["artifacts"])
    show_page(
        key=artifact_key(context.run, f"iteration-{iteration}"),
        markdown=iteration_markdown(store, context.run, committed),
        description=f"Iteration {iteration} of run {context.run}",
    )


@stage_task("commit held-out rewards")
def commit_held_out(
    context: RunContext, iteration: int, policy: Ref, responses: list[Ref], proxy: list[Ref], gold: list[Ref]
) -> None:
    """Record the held-out rewards of π_iteration."""
    store = open_store(context.store)
    record: dict[str, Any] = {
        "iteration": iteration,
        "policy": policy,
        "responses": responses,
        "proxy": proxy,
        "gold": gold,
        "metrics": {"proxy": _mean_reward(store, proxy), "gold": _mean_reward(store, gold)},
    }
    _ledger(context).commit_held_out(iteration, record)
    get_run_logger().info("held-out rewards of policy %d: %s", iteration, record["metrics"])


@stage_task("publish run")
def publish_run(context: RunContext) -> dict[str, Any]:
    """The run's summary, shown in the UI and returned; and its page, which is stored beside the run."""
    store = open_store(context.store)
    rows = summarise(store, context.run)
    last = len(rows)
    record = _ledger(context).iteration(last - 1)
    assert record is not None, "a run that is published has iterations"
    summary = {
        "run": context.run,
        "iterations": rows,
        "overall": held_out_change(store, _ledger(context), 0, last),
        "policy": record["artifacts"]["policy"],
        "replay": record["artifacts"]["replay"],
    }
    page = _ledger(context).show_page(report(store, [context.run]))
    get_run_logger().info("report: %s", page)
    show_page(
        key=artifact_key(context.run, "summary"), markdown=run_markdown(summary, page), description=f"Run {context.run}"
    )
    return summary


@stage_task("show reward model")
def show_reward_model(store: str, model: Ref) -> None:
    """Accuracies of the reward model beside the length-only baseline."""
    metrics = open_store(store).manifest(model).metrics
    show_page(
        key=artifact_key("reward-model", model.key[:12]),
        markdown=reward_model_markdown(metrics),
        description="Bradley-Terry reward model",
    )
    get_run_logger().info("reward model: %s", metrics)


def show_page(**page: Any) -> None:
    """A page in Prefect's UI."""
    with only_shown():
        create_markdown_artifact(**page)


def _check_same(run: str, iteration: int, committed: dict[str, Any], ours: dict[str, Any]) -> None:
    """Refuse an iteration that is made again, after damage to an artifact, and differs from the committed one."""
    if other := [name for name in ours if committed[name] != ours[name]]:
        raise OptuneError(
            f"iteration {iteration} of run {run!r} is committed with another {', '.join(other)} than was made now: "
            "this machine does not repeat that work to the byte. Continue on the machine and versions that made it, "
            "or start a new run with --new-run"
        )


def _ledger(context: RunContext) -> Ledger:
    return Ledger(open_store(context.store).objects, context.run)


def _mean_reward(store: ArtifactStore, shards: list[Ref]) -> float | None:
    scores = read_shards(store, shards, SCORES_FILE, SCORES)
    rewards = reward_per_prompt(scores).values()
    return sum(rewards) / len(rewards) if rewards else None


def artifact_key(*parts: str) -> str:
    """A Prefect artifact key: lower-case letters, digits and dashes."""
    return "-".join(parts).replace(".", "-").replace("_", "-").lower()
