"""Common parts of all stage tasks: find or make artifacts, retry transient errors, show what was cached."""

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
    """Return whether a task run failed with a TransientError; only then is it retried."""
    try:
        state.result()
    except TransientError:
        return True
    except Exception:
        return False
    return False


def stage_task(name: str, run_name: str | None = None) -> Callable[[Callable[P, Any]], Callable[P, Any]]:
    """Return a decorator that makes a function a Prefect task which is retried after a TransientError.

    A call of the task returns its value, whether it was cached or not. Its `submit` is Prefect's: it runs beside the
    caller and returns a future.

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
    """Return the store at a URL, one a process, so that a file is verified once and not again."""
    return ArtifactStore(open_objects(url))


def make(store: str, stage: str, spec: BaseModel, *, accelerate_config: str | None = None) -> Any:
    """Make a stage's artifacts and return references to them; a `Cached` state if all were committed before.

    Args:
        store: folder or s3://bucket/prefix.
        stage: name of the stage.
        spec: spec of the stage.
        accelerate_config: as for `run_stage`.

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
