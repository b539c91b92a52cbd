"""The stages of AlpacaEval 2 as tasks, beside those that it shares with a win score."""

from __future__ import annotations

from typing import Any

from prefect import get_run_logger

from optune_core.evaluation.alpaca_eval import annotations, win_rate
from optune_core.evaluation.alpaca_eval.annotator_files import AnnotatorFiles, describe_annotator, find_annotator
from optune_core.evaluation.alpaca_eval.config import AlpacaConfig
from optune_core.evaluation.alpaca_eval.data import check_calibration, generators, read_references
from optune_core.evaluation.alpaca_eval.report import win_rate_markdown
from optune_core.evaluation.subject import asked_iterations, check_win_rate, policies, recorded_alpaca, run_config
from optune_core.evaluation.win_score.judge import api_key
from optune_core.storage import Ledger, Ref
from tasks.evaluate import EvaluationContext, PromptTable
from tasks.records import artifact_key, show_page
from tasks.support.stage import make, open_store, stage_task


class AlpacaContext(EvaluationContext):
    """What the tasks of AlpacaEval 2 need to know."""

    config: AlpacaConfig
    files: AnnotatorFiles
    instructions: int
    """Of the whole source."""
    reference: str
    """Who wrote the reference outputs."""


def open_alpaca(store: str, run: str, config: AlpacaConfig, iteration: int | None, every: bool) -> AlpacaContext:
    """Look at everything that can be wrong before work is spent: the library, the key, the files, the run.

    Raises:
        OptuneError: as it says.
    """
    files = find_annotator(config.annotator.config)
    api_key(config.annotator, "annotator")
    references = read_references(config.prompts)
    check_calibration(config.calibration, len(references))
    ledger = Ledger(open_store(store).objects, run)
    settings = run_config(ledger)
    known = policies(ledger)
    asked = asked_iterations(ledger, None, len(known), iteration, every=every)
    for t in asked:
        check_win_rate(ledger, config, t)
    return AlpacaContext(
        store=store,
        run=run,
        config=config,
        run_config=settings,
        policies=known,
        iterations=asked,
        files=files,
        instructions=len(references),
        reference=generators(references),
    )


@stage_task("annotate", "annotate policy {iteration}")
def annotate(context: AlpacaContext, iteration: int, table: PromptTable, policy: list[Ref]) -> Any:
    """Have each answer compared with the reference output."""
    spec = annotations.Spec(
        annotator=context.config.annotator,
        files=context.files,
        prompts=context.config.prompts,
        answered=table.rows,
        shard_size=context.config.shard_size,
        policy=policy,
    )
    return make(context.store, "alpaca-annotations", spec)


@stage_task("win rate")
def control_length(context: AlpacaContext, annotations: list[Ref]) -> Any:
    """Win rate and length-controlled win rate."""
    spec = win_rate.Spec(
        annotations=annotations,
        calibration=context.config.calibration,
        instructions=context.instructions,
    )
    return make(context.store, "alpaca-win-rate", spec)


@stage_task("commit win rate")
def commit_win_rate(context: AlpacaContext, iteration: int, annotations: list[Ref], summary: Ref) -> dict[str, Any]:
    """Record the win rate in the run's ledger, tied to the policy's digest, and show it."""
    store, config = open_store(context.store), context.config
    metrics = store.manifest(summary).metrics
    record: dict[str, Any] = {
        "kind": "alpaca_eval",
        "name": config.name,
        "iteration": iteration,
        "policy": context.policies[iteration].to_json(),
        "reference": context.reference,
        "annotator": describe_annotator(context.files, config.annotator),
        "prompts": metrics["total"] + metrics["malformed"],
        "metrics": metrics,
        "artifact": summary.to_json(),
        "annotations": [shard.to_json() for shard in annotations],
        "config": recorded_alpaca(config),
    }
    standing = Ledger(store.objects, context.run).commit_evaluation(config.name, iteration, record)
    show_page(
        key=artifact_key(context.run, config.name, f"policy-{iteration}"),
        markdown=win_rate_markdown(context.run, standing),
        description=f"Length-controlled win rate of policy {iteration} of run {context.run}",
    )
    get_run_logger().info("win rate of policy %d against %s: %s", iteration, standing["reference"], standing["metrics"])
    return standing
