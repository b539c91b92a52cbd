"""What all stage tasks share: find or make the artifacts, retry what is transient, show what was cached."""

from __future__ import annotations

from functools import cache
from typing import Any

from prefect import get_run_logger
from prefect.client.schemas.objects import State
from prefect.states import Completed
from pydantic import BaseModel

from optune_core.errors import TransientError
from optune_core.launch import find_all, run_stage
from optune_core.storage import ArtifactStore, open_objects
from tasks.progress import reporting


def is_transient(task: Any, task_run: Any, state: State[Any]) -> bool:
    """Retry only what may work on the next try."""
    try:
        state.result()
    except TransientError:
        return True
    except Exception:
        return False
    return False


RETRIES: dict[str, Any] = {"retries": 3, "retry_delay_seconds": [5, 30, 120], "retry_condition_fn": is_transient}


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
        made = run_stage(open_store(store), stage, spec, progress, logger.debug, accelerate_config=accelerate_config)
    return [manifest.ref for manifest in made]
