"""What all stage tasks share: find or make the artifacts, retry what is transient, show what was cached."""

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
    """Retry only what may work on the next try."""
    try:
        state.result()
    except TransientError:
        return True
    except Exception:
        return False
    return False


def stage_task(name: str, run_name: str | None = None) -> Callable[[Callable[P, Any]], Callable[P, Any]]:
    """A Prefect task that retries what is transient, and whose call returns its value, cached or not.

    Its `submit` is Prefect's: it runs beside the caller and returns a future.

    Args:
        name: the task's name in the UI.
        run_name: template for the name of its runs.
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
    """The store of this process; files that it verified once are not verified again."""
    return ArtifactStore(open_objects(url))


def make(store: str, stage: str, spec: BaseModel, *, accelerate_config: str | None = None) -> Any:
    """The references of a stage's artifacts, as a `Cached` state where all were committed before.

    Raises:
        OptuneError, TransientError: as `run_stage`.
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
