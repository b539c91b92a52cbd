"""Flow `optune`: advance a run to its target iteration (Algorithm 1)."""

from __future__ import annotations

import os
from pathlib import Path

from prefect import flow, get_run_logger
from prefect.runtime import flow_run

from flows.evaluation import evaluate
from flows.iteration import iteration
from flows.prepare import prepare
from optune_core.storage import Ref
from tasks.logs import quiet_known_errors
from tasks.report import publish_run, reached_iterations, start_run

DEFAULT_STORE = ".optune/store"


def _run_name() -> str:
    parameters = flow_run.parameters
    return parameters["run"] or Path(parameters["config"]).stem


@flow(name="optune", flow_run_name=_run_name)
def optune(
    config: str,
    overrides: list[str] | None = None,
    store: str | None = None,
    run: str | None = None,
    train_deployment: str | None = None,
) -> dict[str, object]:
    """Optimise a policy online by OPTune. The same call continues an interrupted run.

    Args:
        config: YAML file of the experiment.
        overrides: `section.key=value`, on top of it.
        store: folder or s3://bucket/prefix; default: the environment's OPTUNE_STORE, else .optune/store.
        run: name of the run; default: the configuration's name.
        train_deployment: deployment that trains, as flow/name; default: a child process here.

    Returns:
        The run's summary: one entry an iteration, and the trained policy's reference.
    """
    quiet_known_errors()
    store = store or os.environ.get("OPTUNE_STORE", DEFAULT_STORE)
    context = prepare(config, overrides or [], store, run, train_deployment)
    start_run(context)
    replay, policy = Ref.from_json(context.prompts), Ref.from_json(context.policy)
    done = reached_iterations(context)
    for t in range(context.config.iterations):
        if t < len(done):
            get_run_logger().info("iteration %d is committed", t)
            replay, policy = done[t]
        else:
            replay, policy = iteration(context, t, replay, policy)
    evaluate(context, context.config.iterations, policy)
    return publish_run(context)
