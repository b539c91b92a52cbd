"""Flow `optune`: advance a run to its target iteration (Algorithm 1)."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.runtime import flow_run

from flows.held_out import score_held_out
from flows.iteration import iteration
from flows.prepare import prepare
from flows.request import requested, store_url
from optune_core.errors import CorruptArtifact
from optune_core.storage.lease import stop
from tasks.prepare import check_drift, check_store
from tasks.records import publish_run, reached_iterations, start_run
from tasks.support.context import RunContext
from tasks.support.lease import working_on
from tasks.support.logs import quiet_known_errors
from tasks.support.stage import open_store

_REPAIRS = 8
"""Most damaged artifacts that one start replaces; after that the store itself is taken to be faulty."""


def _run_name() -> str:
    parameters = flow_run.parameters
    return parameters["run"] or Path(parameters["config"] or "unnamed").stem


def _cancelled(flow: Any, run: Any, state: Any) -> None:
    """Mark the run as stopped, so that flow `resume` does not start again what its user cancelled."""
    stop(open_store(store_url(run.parameters.get("store"))).objects, run.name)


@flow(name="optune", flow_run_name=_run_name, on_cancellation=[_cancelled])
def optune(
    config: str | None = None,
    overrides: list[str] | None = None,
    store: str | None = None,
    run: str | None = None,
    train_deployment: str | None = None,
) -> dict[str, object]:
    """Optimise a policy by OPTune (Algorithm 1). The same call continues an interrupted run.

    Args:
        config: YAML file of the experiment; default: the configuration of the run's last start.
        overrides: `section.key=value`, on top of it.
        store: folder or s3://bucket/prefix; default: the environment's OPTUNE_STORE, else .optune/store.
        run: name of the run; default: the configuration's name.
        train_deployment: deployment that trains, as flow/name; default: a child process here.

    Returns:
        The run's summary: one entry an iteration, and the reference to the trained policy.

    Raises:
        OptuneError: the configuration or an input cannot be used, or a stage failed for good.
        CorruptArtifact: artifacts are damaged again and again.
    """
    quiet_known_errors()
    store = store_url(store)
    settings, run = requested(config, overrides or [], store, run)
    check_store(store)
    check_drift(store, run, settings)  # before the lease, since taking it stores the configuration
    with working_on(open_store(store).objects, run, settings, unasked=flow_run.run_count > 1):
        for repairs in count():
            try:
                context = prepare(settings, store, run, train_deployment)
                return advance(context, trust_ledger=repairs == 0)
            except CorruptArtifact as damage:
                if repairs == _REPAIRS:
                    raise
                get_run_logger().warning("%s: computing the artifact again", damage)
                open_store.cache_clear()  # a store verifies each file only once
    raise AssertionError("count() does not end")


def advance(context: RunContext, *, trust_ledger: bool) -> dict[str, object]:
    """Run the iterations from the last committed one to the target, and return the run's summary.

    Args:
        trust_ledger: True: iterations that the ledger lists are skipped. False: all iterations run; their intact
            artifacts are found committed, so that only damaged ones are computed again.
    """
    start_run(context)
    replay, policies = context.prompts, [context.policy]
    done = reached_iterations(context) if trust_ledger else []
    for t in range(context.config.iterations):
        if t < len(done):
            get_run_logger().info("iteration %d is committed", t)
            replay, trained = done[t]
        else:
            ahead = context.config.generation.ahead and t > 0
            replay, trained = iteration(context, t, replay, policies[t], sampler=policies[t - 1 if ahead else t])
        policies.append(trained)
    score_held_out(context, context.config.iterations, policies[-1])
    return publish_run(context)
