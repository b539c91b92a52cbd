"""Training of a policy: in a child process of this machine, or on the GPU work pool as a deployment of flow `train`."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from itertools import count
from typing import Any

from prefect import get_run_logger
from prefect.deployments import run_deployment
from prefect.states import Completed

from optune_core.errors import OptuneError, TransientError
from optune_core.stages.launch import find_all
from optune_core.storage import Ref
from optune_core.training.spec import Spec
from tasks.support.context import RunContext
from tasks.support.stage import make, open_store, stage_task

_POLL_SECONDS = 5.0
_ATTEMPTS = 5


@stage_task("train")
def train(context: RunContext, iteration: int, policy: Ref, replay: Ref, online: list[Ref]) -> Any:
    """Train π_{t+1} from π_t and D_t, and from online samples of π_t if the loss has a term on them."""
    spec = Spec(
        training=context.config.training,
        seed=context.config.seed,
        iteration=iteration,
        policy=policy,
        initial=context.policy,
        replay=replay,
        online=online,
    )
    if context.train_deployment is None:
        return make(context.store, "policy", spec, accelerate_config=spec.training.accelerate_config)
    return _on_pool(context.store, context.train_deployment, spec)


def begin_training(
    context: RunContext, iteration: int, policy: Ref, replay: Ref, online: list[Ref]
) -> Callable[[], Any]:
    """Return a function that waits for π_{t+1} and returns it.

    On a work pool, training begins now and runs beside the caller. On this machine it begins when the function is
    called, since the caller uses the devices until then.
    """
    if context.train_deployment is None:
        return lambda: train(context, iteration, policy, replay, online)
    future = train.submit(context, iteration, policy, replay, online)
    return lambda: future.result()


@stage_task("train")
def train_here(store: str, spec: Spec) -> Any:
    """Train a policy on this machine, which is a worker of the GPU pool."""
    return make(store, "policy", spec, accelerate_config=spec.training.accelerate_config)


def _on_pool(store: str, deployment: str, spec: Spec) -> Any:
    """Launch training as a flow run of its own, or attach to the flow run that a killed parent launched.

    A flow run that crashed or was cancelled (its machine disappeared) is followed by another, which resumes from the
    last checkpoint. A flow run that failed is not repeated: it would fail again.

    Raises:
        OptuneError: a flow run failed.
        TransientError: as many flow runs as are tried crashed or were cancelled.
    """
    found = find_all(open_store(store), "policy", spec)
    if found is not None:
        return Completed(name="Cached", message="policy is committed", data=[manifest.ref for manifest in found])
    began = datetime.now(UTC)
    lost = 0
    for attempt in count():
        child = run_deployment(
            deployment,
            parameters={"store": store, "spec": spec.model_dump(mode="json")},
            idempotency_key=f"{spec.work.key}/{attempt}",
            timeout=None,
            poll_interval=_POLL_SECONDS,
            as_subflow=True,
        )
        found = find_all(open_store(store), "policy", spec)
        if found is not None:
            return [manifest.ref for manifest in found]
        assert child.state is not None, "run_deployment waits for a final state"
        if child.end_time is not None and child.end_time < began:
            continue  # an earlier parent launched it, and it ended before this one asked
        if not child.state.is_crashed() and not child.state.is_cancelled():
            raise OptuneError(f"training run {child.name!r} of deployment {deployment!r} failed: {child.state.message}")
        lost += 1
        get_run_logger().warning("training run %r ended as %s; launching another", child.name, child.state.name)
        if lost == _ATTEMPTS:
            raise TransientError(
                f"{_ATTEMPTS} training runs of deployment {deployment!r} in a row crashed or were cancelled: look at "
                "the workers of its pool"
            )
    raise AssertionError("count() does not end")
