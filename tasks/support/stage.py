"""Common parts of all stage tasks: find or make the artifacts, retry transient failures, show cached results."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from typing import Any, ParamSpec

from prefect import get_run_logger, task
from prefect.client.schemas.objects import State
from prefect.states import Completed
from pydantic import BaseModel

from optune_core.errors import TransientError
from optune_core.stages.launch import find_all, run_stage
from optune_core.storage import ArtifactStore, open_objects
from tasks.support.lease import progressed
from tasks.support.progress import reporting

P = ParamSpec("P")


def is_transient(task: Any, task_run: Any, state: State[Any]) -> bool:
    """Whether a task failed with a TransientError, which may be gone on the next try: the condition of retries."""
    try:
        state.result()
    except TransientError:
        return True
    except Exception:
        return False
    return False


def stage_task(name: str, run_name: str | None = None) -> Callable[[Callable[P, Any]], Callable[P, Any]]:
    """Decorate a function as a Prefect task that retries transient failures and returns its value, cached or not.

    Its `submit` is Prefect's own: it runs the task beside the caller and returns a future.

    Args:
        name: name of the task in the UI.
        run_name: template of the names of its runs; default: `name`.
    """

    def wrap(function: Callable[P, Any]) -> Callable[P, Any]:
        wrapped = task(
            function,
            name=name,
            task_run_name=run_name or name,
            retries=len(_RETRY_SECONDS),
            retry_delay_seconds=_RETRY_SECONDS,
            retry_condition_fn=is_transient,
        )

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> Any:
            return wrapped(*args, **kwargs, return_state=True).result()

        call.submit = wrapped.submit  # type: ignore[attr-defined]
        return call

    return wrap


_RETRY_SECONDS = [5, 30, 120]


@cache
def open_store(url: str) -> ArtifactStore:
    """Open a store, once per process and URL, so that files that were verified once are not verified again."""
    return ArtifactStore(open_objects(url))


def make(store: str, stage: str, spec: BaseModel, *, accelerate_config: str | None = None) -> Any:
    """Find or make a stage's artifacts.

    Args:
        store: URL of the store.
        stage: name of the stage.
        spec: the stage's input.
        accelerate_config: configuration file of accelerate for stages that it launches.

    Returns:
        References to the artifacts; as the data of a `Cached` state if all of them were already committed.

    Raises:
        OptuneError, TransientError: the stage failed, see `run_stage`.
    """
    logger = get_run_logger()
    found = find_all(open_store(store), stage, spec)
    if found is not None:
        references = [manifest.ref for manifest in found]
        return Completed(name="Cached", message=f"{len(found)} committed artifacts of {stage!r}", data=references)
    with reporting(stage) as progress:
        made = run_stage(
            open_store(store),
            stage,
            spec,
            progress,
            logger.debug,
            committed=progressed,
            accelerate_config=accelerate_config,
        )
    return [manifest.ref for manifest in made]
