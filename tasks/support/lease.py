"""The lease of the run that this process works on."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from prefect import get_run_logger

from optune_core.config import OptuneConfig
from optune_core.storage.lease import Lease, State, hold
from optune_core.storage.objects import Objects

_held: Lease | None = None


@contextmanager
def working_on(objects: Objects, run: str, config: OptuneConfig, *, unasked: bool) -> Iterator[None]:
    """Hold the run's lease, so that nobody else works on it, and record how the work ended.

    Args:
        unasked: no person asked for this start, but a schedule or an automation.

    Raises:
        RunBusy: somebody works on the run.
        OptuneError: too many unasked starts in a row committed nothing.
    """
    global _held
    logger = get_run_logger()

    def lost() -> None:
        logger.error("run %s was taken over by another process while this one was away: it ends here", run)
        os.kill(os.getpid(), signal.SIGTERM)

    settings = config.model_dump(mode="json")
    with hold(objects, run, settings, unasked=unasked, on_lost=lost, log=logger.info) as lease:
        _held = lease
        try:
            yield
        finally:
            _held = None


def progressed() -> None:
    """Something was committed for the run."""
    if _held is not None:
        _held.progressed()


def let_go(state: State, message: str) -> None:
    """Release the lease from a thread that is about to end the process."""
    if _held is not None:
        _held.release(state, message)
